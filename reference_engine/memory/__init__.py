"""Who owns which block, and the memory itself."""

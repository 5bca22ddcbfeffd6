"""Paged attention behind one seam. See `paged_kernels.attention`."""

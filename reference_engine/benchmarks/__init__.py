"""Benchmarks of the engine that need no server. docs/benchmarks.md says what each measures and what it came to."""

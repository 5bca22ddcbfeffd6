"""A paged-attention engine to read in an hour: the anchor of pabench's conformance suite and benchmarks."""

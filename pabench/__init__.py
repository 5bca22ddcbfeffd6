"""pabench: benchmark and conformance test suite for paged-attention LLM engines."""

__version__ = "0.1.0"

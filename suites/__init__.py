"""The conformance suites, a folder a level; where pabench is installed, `pytest --pyargs pabench.suites`."""

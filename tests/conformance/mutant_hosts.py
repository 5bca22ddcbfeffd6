"""Reference engines with and without faults, as `pabench mutants` starts them."""

from pabench.conformance.hosting import ROOT, engine, host

__all__ = ["ROOT", "engine", "host"]

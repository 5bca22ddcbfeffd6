"""Reference engines with and without faults, as `pabench mutants` starts them."""

from pabench.conformance.hosting import COMMON, DEFAULTS, ROOT, ask_engine, engine, host

__all__ = ["COMMON", "DEFAULTS", "ROOT", "ask_engine", "engine", "host"]

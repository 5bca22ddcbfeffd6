"""The commands of `pabench`, by what they are about; `pabench.cli` puts them together."""

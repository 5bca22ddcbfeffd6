"""`python -m pabench` is `pabench`."""

from pabench.cli import main

main()

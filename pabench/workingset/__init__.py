"""What a KV cache holds, measured by a client. See docs/working-set.md."""

from pabench.workingset.figure import Figure
from pabench.workingset.measure import Options, WorkingSet, measure_working_set

__all__ = ["Figure", "Options", "WorkingSet", "measure_working_set"]

"""Analysis: records -> figures, verdicts and tables. Reads run folders, measures nothing."""

from pabench.analysis.finish import finish_run
from pabench.analysis.runs import Run, find_runs, load_run
from pabench.analysis.stats import quantiles
from pabench.analysis.summarise import summarise
from pabench.analysis.summary import Quantiles, RunSummary, Validity, WasteSplit
from pabench.analysis.tables import comparison_frame, comparison_table, throughput_table

__all__ = [
    "Quantiles", "Run", "RunSummary", "Validity", "WasteSplit", "comparison_frame",
    "comparison_table", "find_runs", "finish_run", "load_run", "quantiles", "summarise", "throughput_table",
]

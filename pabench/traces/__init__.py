"""Public traces of requests: when each arrived, how long its prompt and its answer were, which prefixes it shares."""

from pabench.traces.readers import FORMATS, read_trace
from pabench.traces.trace import Trace

__all__ = ["FORMATS", "Trace", "read_trace"]

"""Load: workload file -> schedule -> client -> records. See docs/measurement.md for what is measured."""

from pabench.load.closing import recover_run
from pabench.load.loop import run_loop
from pabench.load.manifest import ClientHealth, EngineRecord, Manifest, read_manifest
from pabench.load.measure import Progress, ProgressState
from pabench.load.pool import Placement
from pabench.load.records import ERROR_KINDS, OUTCOMES, RecordsUnwritable, RequestRecord
from pabench.load.runner import resume_run, run_workload
from pabench.load.workload import Workload, known_workloads, load_workload, sweep_loads

__all__ = [
    "ERROR_KINDS", "OUTCOMES", "ClientHealth", "EngineRecord", "Manifest", "Placement", "Progress", "ProgressState",
    "RecordsUnwritable", "RequestRecord", "Workload", "known_workloads", "load_workload", "read_manifest",
    "recover_run", "resume_run", "run_loop", "run_workload", "sweep_loads",
]

"""Reference engines with and without faults, forked from one process that has torch loaded: fast to start."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from pabench.engines import free_port
from pabench.resources import data_dir

ROOT = Path(__file__).resolve().parents[2]
COMMON = ("--block-size", "16", "--dtype", "float32", "--served-model-name", "probe")
DEFAULTS = ("--num-blocks", "256", "--max-num-seqs", "16", "--max-model-len", "512")
_READY_S = 60.0


def host() -> ModuleType:
    """suites/mutants/host.py: no package, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("pabench_mutant_host", data_dir("suites") / "mutants" / "host.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(name: str | None, args: list[str], log: str) -> None:
    """In the forked process: serve, with the output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    raise SystemExit(host().serve(name, args))


@contextlib.contextmanager
def engine(name: str | None, model: Path, log: Path, *options: str) -> Iterator[str]:
    """The URL of an engine; `options` come behind the defaults, and the last word counts."""
    port = free_port()
    args = ["--model", str(model), "--port", str(port), *COMMON, *DEFAULTS, *options]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reference_engine.__main__"])
    process = context.Process(target=serve, args=(name, args, str(log)), daemon=True)
    process.start()
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _wait(url: str, process: multiprocessing.process.BaseProcess, log: Path) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.is_alive():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the engine did not start: {log.read_text() if log.exists() else 'no log'}")

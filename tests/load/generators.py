"""Load generators, ours and others, as commands to run beside the fast stub, and how their results are read.

Peers are installed with `python tests/real/install.py guidellm .envs/guidellm` (vllm, aiperf).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pabench.analysis import load_run
from pabench.analysis.latency import itl_ms, ttft_ms
from pabench.errors import PabenchError
from pabench.load.calibrate import fast_stub

ENVS = Path(".envs")
_PROMPT_TOKENS = 8
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many answers: each with a user of its own, or, where there is a `rate_per_s`, as Poisson has it."""

    url: str
    requests: int
    tokens: int
    tokenizer: Path
    folder: Path
    rate_per_s: float | None = None

    def pace(self, users: str, rate: str) -> list[str]:
        """The option that sets the pace, by its name for users or for requests a second."""
        return [users, str(self.requests)] if self.rate_per_s is None else [rate, str(self.rate_per_s)]


@dataclass(frozen=True, slots=True)
class Said:
    """A generator's own figures, milliseconds; None where it has none."""

    ttft_p50_ms: float | None
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU time of a whole command, seconds: all of it, and what of it was the kernel's."""

    cpu_s: float
    kernel_s: float


@dataclass(frozen=True, slots=True)
class Peer:
    """How one is run and read."""

    name: str
    python: Path
    command: Callable[[Load], list[str]]
    read: Callable[[Load], Said]
    env: tuple[tuple[str, str], ...] = ()


def write_workload(folder: Path, *, requests: int, tokens: int, arrivals: str) -> str:
    """A file of so many requests of `tokens` tokens each, as `arrivals` (TOML) says; its path."""
    path = folder / "load.toml"
    path.write_text(
        f'description = "Fixed lengths."\nprompt = "text"\nnum_requests = {requests}\nwarmup_requests = 0\n'
        f'timeout_s = 300\nprompt_tokens = {{ law = "fixed", tokens = {_PROMPT_TOKENS} }}\n'
        f'output_tokens = {{ law = "fixed", tokens = {tokens} }}\narrivals = {{ {arrivals} }}\n')
    return str(path)


def _pabench(load: Load) -> list[str]:
    arrivals = (f'kind = "closed", users = {load.requests}' if load.rate_per_s is None else
                f'kind = "poisson", rate_per_s = {load.rate_per_s}')
    workload = write_workload(load.folder, requests=load.requests, tokens=load.tokens, arrivals=arrivals)
    return ["-m", "pabench", "run", "--url", load.url, "--workload", workload, "--out", str(load.folder / "run"),
            "--quiet"]


def _read_pabench(load: Load) -> Said:
    from pabench.analysis import summarise

    run = load_run(load.folder / "run")
    gaps = itl_ms(run.requests)
    validity = summarise(run).validity
    return Said(_quantile(ttft_ms(run.requests), 0.5), _quantile(gaps, 0.5), _quantile(gaps, 0.99),
                "VALID" if validity.valid else "INVALID: " + "; ".join(validity.reasons))


def _quantile(samples: Any, q: float) -> float:
    import numpy as np

    return float(np.quantile(samples, q))


_VLLM = ("import argparse; from vllm.benchmarks.serve import add_cli_args, main; parser = argparse.ArgumentParser(); "
         "add_cli_args(parser); main(parser.parse_args())")


def _vllm(load: Load) -> list[str]:
    return ["-c", _VLLM, "--backend", "openai", "--base-url", load.url, "--model", "stub", "--tokenizer",
            str(load.tokenizer), "--dataset-name", "random", "--random-input-len", str(_PROMPT_TOKENS),
            "--random-output-len", str(load.tokens), "--num-prompts", str(load.requests),
            *load.pace("--max-concurrency", "--request-rate"), "--ignore-eos", "--disable-tqdm",
            "--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99", "--save-result", "--result-dir",
            str(load.folder), "--result-filename", "vllm.json"]


def _read_vllm(load: Load) -> Said:
    found = json.loads((load.folder / "vllm.json").read_text())
    return Said(found["median_ttft_ms"], found["median_itl_ms"], found["p99_itl_ms"])


def _guidellm(load: Load) -> list[str]:
    profile = (f"kind=concurrent,streams={load.requests}" if load.rate_per_s is None else
               f"kind=poisson,rate={load.rate_per_s}")
    return ["-m", "guidellm", "run", "--backend", f"kind=openai_http,target={load.url},model=stub", "--profile",
            profile, "--constraint", f"kind=max_requests,count={load.requests}",
            "--tokenizer", f"kind=huggingface_auto,model={load.tokenizer}", "--data",
            f"kind=synthetic_text,prompt_tokens={_PROMPT_TOKENS},output_tokens={load.tokens}", "--output",
            f"kind=json,path={load.folder / 'guidellm.json'}", "--disable-console"]


def _read_guidellm(load: Load) -> Said:
    metrics = json.loads((load.folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]

    def of(name: str, quantile: str) -> float:
        return float(metrics[name]["successful"]["percentiles"][quantile])

    return Said(of("time_to_first_token_ms", "p50"), of("inter_token_latency_ms", "p50"), None)


def _aiperf(load: Load) -> list[str]:
    return ["-m", "aiperf", "profile", "--model", "stub", "--url", load.url, "--endpoint-type", "chat", "--streaming",
            "--tokenizer", str(load.tokenizer), *load.pace("--concurrency", "--request-rate"), "--request-count",
            str(load.requests), "--isl", str(_PROMPT_TOKENS), "--osl", str(load.tokens), "--ui", "none",
            "--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics", "--artifact-dir",
            str(load.folder / "aiperf")]


def _read_aiperf(load: Load) -> Said:
    found = json.loads(next((load.folder / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    return Said(found["time_to_first_token"]["p50"], found["inter_token_latency"]["p50"], None)


def _bare_loop(load: Load) -> list[str]:
    return ["-m", "tests.load.bare_loop", load.url, "--streams", str(load.requests), "--tokens", str(load.tokens),
            "--out", str(load.folder / "bare_loop.json")]


def _read_bare_loop(load: Load) -> Said:
    return Said(**json.loads((load.folder / "bare_loop.json").read_text()))


BARE_LOOP = Peer("bare loop", Path(sys.executable), _bare_loop, _read_bare_loop)  # of closed loops alone
PEERS = (
    Peer("pabench", Path(sys.executable), _pabench, _read_pabench),
    Peer("vllm bench serve", ENVS / "vllm/bin/python", _vllm, _read_vllm,
         (("VLLM_TARGET_DEVICE", "cpu"), ("HF_HUB_OFFLINE", "1"))),
    Peer("GuideLLM", ENVS / "guidellm/bin/python", _guidellm, _read_guidellm, (("HF_HUB_OFFLINE", "1"),)),
    Peer("AIPerf", ENVS / "aiperf/bin/python", _aiperf, _read_aiperf),
)


def chosen(only: Sequence[str], among: Sequence[Peer] = PEERS) -> list[Peer]:
    """Those of `among` that are called so, all where none is named; who is not installed is named and left out."""
    if unknown := set(only) - {peer.name for peer in among}:
        sys.exit(f"no such generator: {', '.join(sorted(unknown))}; known: {', '.join(peer.name for peer in among)}")
    wanted = [peer for peer in among if not only or peer.name in only]
    for peer in wanted:
        if not peer.python.exists():
            print(f"left out, not installed: {peer.name} ({peer.python})", flush=True)
    return [peer for peer in wanted if peer.python.exists()]


def run_beside(peer: Peer, requests: int, tokens: int, tokenizer: Path, *, ttft_ms: float, itl_ms: float,
               rate_per_s: float | None = None) -> tuple[Said, dict[str, Any], list[int], Spent]:
    """What `peer` said, what the stub says of itself, when requests came there (nanoseconds), and what it took.

    A core each. Ends the program, with the peer's log, where it left no result.
    """
    stub_core, own_core = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with on_core(stub_core), fast_stub(folder, ttft_ms=ttft_ms, itl_ms=itl_ms, stamps=False) as stub:
            load = Load(stub.url, requests, tokens, tokenizer, folder, rate_per_s)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with on_core(own_core), (folder / "log").open("wb") as log:
                done = subprocess.run([peer.python, *peer.command(load)], stdout=log, stderr=log, timeout=_TIMEOUT_S,
                                      check=False, env=os.environ | dict(peer.env))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            truth, arrived_ns = (_told(f"{stub.url}/{path}") for path in ("stats", "arrivals"))
        try:
            said = peer.read(load)
        except (OSError, KeyError, StopIteration, PabenchError) as error:
            log_end = (folder / "log").read_text(errors="replace")[-3000:]
            sys.exit(f"{peer.name} ended with {done.returncode} and no result ({error!r}):\n{log_end}")
    kernel_s = after.ru_stime - before.ru_stime
    return said, truth, arrived_ns, Spent(after.ru_utime - before.ru_utime + kernel_s, kernel_s)


def _told(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


class on_core:
    """Children that are started in the block have one core."""

    def __init__(self, core: int) -> None:
        self._core = core

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)

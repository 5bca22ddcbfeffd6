"""Load generators against a server of known timing, one core each: what each says, and what was true. A benchmark.

    python -m tests.load.peers [--streams 64,1000] [--seconds 8] [--only NAME] [--json FILE]

The fast stub (`pabench stub --fast`) has a core, the generator another; each runs alone, one after the other, on the
same load: so many users, one long answer each, a token every 10 ms. CPU is counted over the smallest load's. Peers
that are not installed are left out, and said so: `python tests/real/install.py guidellm .envs/guidellm` (vllm, aiperf).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pabench.analysis import load_run
from pabench.analysis.latency import itl_ms, ttft_ms
from pabench.errors import PabenchError
from pabench.load.calibrate import TTFT_MS, fast_stub

ITL_MS = 10.0
ENVS = Path(".envs")
_PROMPT_TOKENS = 8
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many users, each with one answer."""

    url: str
    streams: int
    tokens: int
    tokenizer: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Said:
    """A generator's own figures, milliseconds; None where it has none."""

    ttft_p50_ms: float | None
    itl_p50_ms: float | None
    itl_p99_ms: float | None
    verdict: str = ""


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
    workload = write_workload(load.folder, requests=load.streams, tokens=load.tokens,
                              arrivals=f'kind = "closed", users = {load.streams}')
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
            "--random-output-len", str(load.tokens), "--num-prompts", str(load.streams), "--max-concurrency",
            str(load.streams), "--ignore-eos", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl",
            "--metric-percentiles", "50,99", "--save-result", "--result-dir", str(load.folder), "--result-filename",
            "vllm.json"]


def _read_vllm(load: Load) -> Said:
    found = json.loads((load.folder / "vllm.json").read_text())
    return Said(found["median_ttft_ms"], found["median_itl_ms"], found["p99_itl_ms"])


def _guidellm(load: Load) -> list[str]:
    return ["-m", "guidellm", "run", "--backend", f"kind=openai_http,target={load.url},model=stub", "--profile",
            f"kind=concurrent,streams={load.streams}", "--constraint", f"kind=max_requests,count={load.streams}",
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
            "--tokenizer", str(load.tokenizer), "--concurrency", str(load.streams), "--request-count",
            str(load.streams), "--isl", str(_PROMPT_TOKENS), "--osl", str(load.tokens), "--ui", "none",
            "--use-server-token-count", "--no-gpu-telemetry", "--no-server-metrics", "--artifact-dir",
            str(load.folder / "aiperf")]


def _read_aiperf(load: Load) -> Said:
    found = json.loads(next((load.folder / "aiperf").rglob("profile_export_aiperf.json")).read_text())
    return Said(found["time_to_first_token"]["p50"], found["inter_token_latency"]["p50"], None)


PEERS = (
    Peer("pabench", Path(sys.executable), _pabench, _read_pabench),
    Peer("vllm bench serve", ENVS / "vllm/bin/python", _vllm, _read_vllm,
         (("VLLM_TARGET_DEVICE", "cpu"), ("HF_HUB_OFFLINE", "1"))),
    Peer("GuideLLM", ENVS / "guidellm/bin/python", _guidellm, _read_guidellm, (("HF_HUB_OFFLINE", "1"),)),
    Peer("AIPerf", ENVS / "aiperf/bin/python", _aiperf, _read_aiperf),
)


def measure(peer: Peer, streams: int, seconds: float, tokenizer: Path) -> dict[str, Any]:
    """One row: what `peer` said, what was true, and what it took of its core."""
    stub_core, own_core = sorted(os.sched_getaffinity(0))[:2]
    tokens = max(2, round((seconds * 1e3 - TTFT_MS) / ITL_MS))
    with tempfile.TemporaryDirectory() as folder:
        with on_core(stub_core), fast_stub(Path(folder), ttft_ms=TTFT_MS, itl_ms=ITL_MS) as stub:
            load = Load(stub.url, streams, tokens, tokenizer, Path(folder))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with on_core(own_core), (Path(folder) / "log").open("wb") as log:
                done = subprocess.run([peer.python, *peer.command(load)], stdout=log, stderr=log, timeout=_TIMEOUT_S,
                                      check=False, env=os.environ | dict(peer.env))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            with urllib.request.urlopen(f"{stub.url}/stats", timeout=10) as answer:
                truth = json.load(answer)
        try:
            said = peer.read(load)
        except (OSError, KeyError, StopIteration, PabenchError) as error:
            log_end = (Path(folder) / "log").read_text(errors="replace")[-3000:]
            sys.exit(f"{peer.name} ended with {done.returncode} and no result ({error!r}):\n{log_end}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"peer": peer.name, "streams": streams, **asdict(said), "stub": truth, "cpu_s": cpu_s}


def cost_us(row: dict[str, Any], least: dict[str, Any]) -> float | None:
    """CPU time a token, microseconds, over that of the smallest load: start and end are no part of it."""
    tokens = row["stub"]["chunks"] - least["stub"]["chunks"]
    return (row["cpu_s"] - least["cpu_s"]) * 1e6 / tokens if tokens > 0 else None


class on_core:
    """Children that are started in the block have one core."""

    def __init__(self, core: int) -> None:
        self._core = core

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._core})

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._before)


def show(row: dict[str, Any]) -> str:
    """A line of the table, in Markdown."""
    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    cost = row["cpu_us_per_token"]
    return (f"| {row['streams']} | {row['peer']} | {ms(row['ttft_p50_ms'])} | {ms(row['itl_p50_ms'])} | "
            f"{ms(row['itl_p99_ms'])} | {'–' if cost is None else f'{cost:.1f}'} | {row['stub']['late_p99_ms']:.2f} | "
            f"{row['verdict']} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="4,256,1000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", help="name of one generator")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "probe"
        subprocess.run([sys.executable, "-m", "pabench", "probe", "build", "--preset", "tiny", "--out", tokenizer],
                       check=True, stdout=subprocess.DEVNULL)
        print(f"truth: TTFT {TTFT_MS:g} ms, ITL {ITL_MS:g} ms\n\n| streams | generator | TTFT p50 | ITL p50 | "
              "ITL p99 | CPU µs a token | stub late p99 | verdict |\n|---|---|---|---|---|---|---|---|", flush=True)
        rows: list[dict[str, Any]] = []
        least: dict[str, dict[str, Any]] = {}
        for streams in map(int, given.streams.split(",")):
            for peer in PEERS:
                if given.only not in (None, peer.name):
                    continue
                if not peer.python.exists():
                    print(f"| {streams} | {peer.name} | not installed: {peer.python} |||||", flush=True)
                    continue
                row = measure(peer, streams, given.seconds, tokenizer)
                row["cpu_us_per_token"] = cost_us(row, least.setdefault(peer.name, row))
                rows.append(row)
                print(show(row), flush=True)
                time.sleep(1.0)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

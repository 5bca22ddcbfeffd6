"""False alarms of the http level: the `ci` profile with many seeds, on an engine that is right. A benchmark.

    python -m tests.conformance.false_alarms --engine vllm-160 --seeds 101-120 [--out results/false-alarms]

One folder a run, so that what was broken off goes on where it stopped: a seed whose results are there is not run
again. What ends vLLM for sure (known_failures.toml) is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from pabench.conformance import Outcome, load_results
from pabench.errors import PabenchError
from pabench.probe import build_checkpoint, preset
from tests.real.engines import REFERENCE, ROOT, VLLM, VLLM_160, VLLM_ENV, launch_line

ENGINES = {
    "reference": (*REFERENCE, "--num-blocks", "512"),
    "reference-160": (*REFERENCE, "--num-blocks", "160"),
    "vllm": VLLM,
    "vllm-160": VLLM_160,
}
_FINE = (Outcome.PASS, Outcome.UNSUPPORTED, Outcome.DISABLED)


def conform(engine: str, seed: int, model: Path, out: Path) -> float:
    """Run the suite once. Seconds, with the engine's start."""
    launch = launch_line(ENGINES[engine], {"model": str(model)})
    command = [sys.executable, "-m", "pabench", "conform", "--launch", launch, "--profile", "ci", "--seed", str(seed),
               "--out", str(out), "--quiet"]
    if engine.startswith("vllm"):
        command += ["--expect", str(Path(__file__).with_name("known_failures.toml"))]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=os.environ | VLLM_ENV, check=False, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def told(out: Path) -> str:
    """What became of a run: a count of its cases, and each alarm by name."""
    try:
        rows = load_results(out).rows
    except PabenchError as error:
        return f"could not run: {error}"
    alarms = [row for row in rows if row.outcome not in _FINE]
    must = [f"{row.requirement}[{row.case}] {row.outcome}" for row in alarms if row.level == "MUST"]
    should = [f"{row.requirement}[{row.case}] {row.outcome} (SHOULD)" for row in alarms if row.level != "MUST"]
    return f"{len(rows)} cases, " + ("; ".join(must + should) or "no alarm")


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=sorted(ENGINES), required=True)
    parser.add_argument("--seeds", required=True, help="First and last, e.g. 101-120.")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "false-alarms")
    args = parser.parse_args()
    first, last = (int(part) for part in args.seeds.split("-"))
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.out / "probe-gqa"
    if not model.exists():
        build_checkpoint(preset("gqa"), model)
    for seed in range(first, last + 1):
        out = args.out / f"{args.engine}-{seed}"
        took = "kept" if out.exists() else f"{conform(args.engine, seed, model, out):.0f} s"
        print(f"{args.engine} {seed}: {took}, {told(out)}", flush=True)


if __name__ == "__main__":
    main()

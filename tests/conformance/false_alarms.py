"""False alarms of the http level: the `ci` profile with many seeds, on an engine that is right. A benchmark.

    python -m tests.conformance.false_alarms --engine vllm-160 --seeds 101-120 [--words] [--id REQUIREMENT …]

One engine serves all seeds, as one that is long in use: it is started again only if a run has ended it. One folder a
run, so that what was broken off goes on where it stopped: a seed whose results are there is not run again. What ends
vLLM for sure (known_failures.toml) is left out.

--words: not of the probe, but of an ordinary model (random, 2M, bfloat16) of which the engine tells words alone, as an
engine does that nobody has written a dialect for.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pabench.conformance import Outcome, load_results
from pabench.engines import EngineProcess
from pabench.errors import PabenchError
from pabench.probe import build_checkpoint, preset
from reference_engine.benchmarks.random_llama import SIZES, build_random_llama
from tests.real.engines import REFERENCE, ROOT, VLLM, VLLM_160, VLLM_ENV

ENGINES = {
    "reference": (*REFERENCE, "--num-blocks", "512"),
    "reference-160": (*REFERENCE, "--num-blocks", "160"),
    "vllm": VLLM,
    "vllm-160": VLLM_160,
}
_FINE = (Outcome.PASS, Outcome.UNSUPPORTED, Outcome.DISABLED)


def conform(engine: str, url: str, seed: int, out: Path, options: Sequence[str]) -> float:
    """Run the suite once, with `options`. Seconds."""
    command = [sys.executable, "-m", "pabench", "conform", "--url", url, "--profile", "ci", "--seed", str(seed),
               "--out", str(out), "--quiet", *options]
    if engine.startswith("vllm"):
        command += ["--expect", str(Path(__file__).with_name("known_failures.toml"))]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def ask_all(engine: str, seeds: Sequence[int], out: Path, *, words: bool, ids: Sequence[str]) -> None:
    """The seeds one after the other, from one engine or, where a run ends it, the next."""
    model = _model(out, words)
    launch = [word.format(model=model, port="{port}") for word in ENGINES[engine]]
    options = [word for each in ids for word in ("--id", each)]
    if words:
        options += ["--dialect", "openai"]
        launch += ["--dtype", "bfloat16"]
    left = list(seeds)
    while left:
        log = out / f"{engine}.log"
        with EngineProcess(launch, url="http://127.0.0.1:{port}", log=log, env=VLLM_ENV) as process:
            while left and process.alive:
                seed = left.pop(0)
                folder = _folder(out, engine, seed, words)
                took = f"{conform(engine, process.url, seed, folder, options):.0f} s"
                print(f"{folder.name}: {took}, {told(folder)}", flush=True)


def _folder(out: Path, engine: str, seed: int, words: bool) -> Path:
    return out / f"{engine}{'-words' if words else ''}-{seed}"


def _model(out: Path, words: bool) -> Path:
    model = out / ("random-2m" if words else "probe-gqa")
    if not model.exists() and words:
        build_random_llama(SIZES["2M"], model)
    elif not model.exists():
        build_checkpoint(preset("gqa"), model)
    return model


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
    parser.add_argument("--words", action="store_true", help="Ask an ordinary model that tells words alone.")
    parser.add_argument("--id", dest="ids", action="append", default=[], help="Only this requirement (repeatable).")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "false-alarms")
    args = parser.parse_args()
    first, last = (int(part) for part in args.seeds.split("-"))
    args.out.mkdir(parents=True, exist_ok=True)
    missing = []
    for seed in range(first, last + 1):
        folder = _folder(args.out, args.engine, seed, args.words)
        if folder.exists():
            print(f"{folder.name}: kept, {told(folder)}", flush=True)
        else:
            missing.append(seed)
    ask_all(args.engine, missing, args.out, words=args.words, ids=args.ids)


if __name__ == "__main__":
    main()

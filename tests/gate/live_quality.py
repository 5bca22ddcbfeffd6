"""How often `pabench gate run` errs, on the reference engine or on a stub of known timing, live. A benchmark.

    python -m tests.gate.live_quality --gates 20 [--engine stub] [--only aa,tpot] [--out results/gate-quality]

Each gate starts the engine anew for each run, as `pabench gate run` does with a command; only the candidate is slowed
(reference_engine.benchmarks.slowed, or the stub's own timing). One folder a gate, so that what was broken off goes on
where it stopped: a gate with a gate.json is not run again, nor is one that could not run (error.txt); remove its folder
to run it again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pabench.errors import PabenchError
from pabench.gate import Decision, GateRun, Policy, Side, load_policy
from pabench.gate.decide import INCONCLUSIVE, PASS, REGRESSION, WATCHED, WORSE, change_text
from pabench.gate.words import JSON_FILE, write_decision
from pabench.load import Workload, load_workload
from pabench.load.records import write_atomic
from pabench.probe import build_checkpoint, preset

ROOT = Path(__file__).resolve().parents[2]
ERROR_FILE, SECONDS_FILE, RESULT_FILE = "error.txt", "seconds.txt", "quality.json"
MODEL = "probe-gqa"  # folder of the model that the reference engine serves
COULD_NOT_RUN = "could not run"
METRICS = ("throughput_tokens_per_s", "tpot_p50_ms", "ttft_p50_ms")
CASES = {"aa": "nothing (A/A)", "tpot": "TPOT worse by 5%", "ttft": "TTFT worse by 10%",
         "throughput": "throughput worse by 5%"}
REFERENCE, STUB = "reference", "stub"
# Case -> options that slow the reference engine. Of what its answers' ends cost a part is won back: fewer share a step.
_SLOWED: dict[str, tuple[str, ...]] = {
    "aa": (), "tpot": ("--decode", "1.05"), "ttft": ("--first", "1.10"), "throughput": ("--end", "1.055")}
_TTFT_MS, _ITL_MS, _MEAN_TOKENS = 40.0, 10.0, 64
_ANSWER_MS = _TTFT_MS + (_MEAN_TOKENS - 1) * _ITL_MS
# Case -> of the stub's timing, what is worse. Throughput: users * tokens / time of an answer.
_SLOWED_STUB: dict[str, dict[str, float]] = {
    "aa": {}, "tpot": {"itl_ms": 1.05 * _ITL_MS}, "ttft": {"ttft_ms": 1.10 * _TTFT_MS},
    "throughput": {"end_ms": _ANSWER_MS * (1 / 0.95 - 1)}}


def commands(engine: str, case: str, model: Path) -> tuple[str, str]:
    """What starts the baseline, and the candidate."""
    if engine == REFERENCE:
        return _reference(model, ()), _reference(model, _SLOWED[case])
    return _stub(), _stub(**_SLOWED_STUB[case])


def gate(engine: str, case: str, number: int, out: Path, workload: Workload, policy: Policy, turns: int) -> None:
    """Run one gate into its folder of `out`, its verdict or why there is none."""
    folder = out / f"{case}-{number:02}"
    baseline, candidate = commands(engine, case, out / MODEL)
    sides = (Side("baseline", baseline), Side("candidate", candidate))
    seed = 100_000 * list(CASES).index(case) + 1000 * number  # no two gates send the same requests
    began = time.monotonic()
    folder.mkdir(parents=True)
    found: Decision | PabenchError
    try:
        found = GateRun(sides, workload, policy, folder, seed, turns=turns, quiet=True).run()
    except PabenchError as error:
        found = error
    write_atomic(folder / SECONDS_FILE, f"{time.monotonic() - began:.1f}".encode())
    if isinstance(found, PabenchError):
        write_atomic(folder / ERROR_FILE, str(found).encode())
    else:
        write_decision(found, folder)


def read_gate(case: str, folder: Path) -> dict[str, Any]:
    """What became of a gate."""
    found: dict[str, Any] = {"case": case, "gate": folder.name, "seconds": float((folder / SECONDS_FILE).read_text())}
    if (folder / ERROR_FILE).exists():
        return found | {"outcome": COULD_NOT_RUN, "why": (folder / ERROR_FILE).read_text(), "pairs": 0, "metrics": {}}
    told = orjson.loads((folder / JSON_FILE).read_bytes())
    metrics = {each["metric"]: {name: each[name] for name in ("ratio", "low", "high", "outcome")}
               for each in told["metrics"] if each["outcome"] != WATCHED}
    return found | {"outcome": told["outcome"], "why": "; ".join((*told["failures"], *told["notes"])),
                    "pairs": max((each["count"] for each in told["metrics"]), default=0), "metrics": metrics}


def gate_text(found: dict[str, Any]) -> str:
    """One gate in a line."""
    figures = [f"{name.partition('_')[0]} {change_text(each['ratio'])}{' WORSE' * (each['outcome'] == WORSE)}"
               for name, each in found["metrics"].items()]
    why = f"  [{found['why']}]" if found["why"] else ""
    return (f"{found['gate']:14} {found['outcome']:13} {found['pairs']:2} pairs {found['seconds']:5.0f} s  "
            f"{', '.join(figures)}{why}")


def table(gates: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row a case; changes of the candidate are the means over its gates."""
    outcomes = (REGRESSION, PASS, INCONCLUSIVE, COULD_NOT_RUN)
    columns = ("case", "gates", *outcomes, "pairs, mean", "seconds, mean", "throughput", "TPOT p50", "TTFT p50")
    rows = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for case, name in CASES.items():
        mine = [each for each in gates if each["case"] == case]
        if mine:
            counts = [str(sum(each["outcome"] == outcome for each in mine)) for outcome in outcomes]
            means = [f"{np.mean([each[key] for each in mine]):.1f}" for key in ("pairs", "seconds")]
            changes = [_mean_change(mine, metric) for metric in METRICS]
            rows.append(f"| {' | '.join((name, str(len(mine)), *counts, *means, *changes))} |")
    return "\n".join(rows)


def _mean_change(gates: Sequence[dict[str, Any]], metric: str) -> str:
    ratios = [each["metrics"][metric]["ratio"] for each in gates if metric in each["metrics"]]
    return change_text(float(np.exp(np.mean(np.log(ratios))))) if ratios else "–"


def _reference(model: Path, slower: Sequence[str]) -> str:
    """Slowed where `slower` says how."""
    module = "reference_engine.benchmarks.slowed" if slower else "reference_engine"
    command = shlex.join([sys.executable, "-m", module, *slower, "--model", str(model), "--port"])
    return f"{command} {{port}}"


def _stub(ttft_ms: float = _TTFT_MS, itl_ms: float = _ITL_MS, end_ms: float = 0.0) -> str:
    timing = ("--ttft-ms", f"{ttft_ms:g}", "--itl-ms", f"{itl_ms:g}", "--end-ms", f"{end_ms:g}")
    return f"{shlex.join([sys.executable, '-m', 'pabench.stub', *timing, '--port'])} {{port}}"


def _workload(engine: str, **load: int) -> Workload:
    """What is asked: of a stub, answers whose mean length is known."""
    if engine == REFERENCE:
        return load_workload("sharegpt-mini", **load)
    lengths = {"law": "uniform", "min": _MEAN_TOKENS - 16, "max": _MEAN_TOKENS + 16}
    return load_workload("smoke", output_tokens=lengths, **load)


def main(argv: Sequence[str] | None = None) -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=20, help="Gates a case.")
    parser.add_argument("--engine", choices=(REFERENCE, STUB), default=REFERENCE)
    parser.add_argument("--only", default=",".join(CASES), help=f"Of {', '.join(CASES)}; all by default.")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gate-quality")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--num-requests", type=int, default=24)
    parser.add_argument("--max-pairs", type=int, help="Budget of a gate; the policy's by default.")
    parser.add_argument("--turns", type=int, default=1, help="Runs of each side a start.")
    args = parser.parse_args(argv)
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(CASES):
        parser.error(f"--only has {', '.join(sorted(unknown))}, expected some of {', '.join(CASES)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the engines' own: a second thread for so small a model only costs
    workload = _workload(args.engine, users=args.users, num_requests=args.num_requests)
    policy = load_policy().within(args.max_pairs)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.engine == REFERENCE and not (args.out / MODEL).exists():
        build_checkpoint(preset("gqa"), args.out / MODEL)
    gates = []
    for number in range(args.gates):  # case by case within a round: what changes over hours meets all alike
        for case in chosen:
            folder = args.out / f"{case}-{number:02}"
            if not any((folder / name).exists() for name in (JSON_FILE, ERROR_FILE)):
                shutil.rmtree(folder, ignore_errors=True)  # broken off
                gate(args.engine, case, number, args.out, workload, policy, args.turns)
            gates.append(read_gate(case, folder))
            print(gate_text(gates[-1]), flush=True)
            write_atomic(args.out / RESULT_FILE, orjson.dumps({"schema_version": 1, "gates": gates},
                                                              option=orjson.OPT_INDENT_2))
    print(f"\n{table(gates)}")


if __name__ == "__main__":
    main()

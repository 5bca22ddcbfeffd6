"""What looking blocks up costs our CPU kernel: several processes, since each lays its caches out elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pabench.claims import Bench, Shown
from reference_engine.benchmarks.timing import Spread

_SCRIPT = Path(__file__).with_name("kernel_times.py")
_CONTEXT = 1024  # of kernel_times.py: a block that holds a whole sequence is a contiguous cache
_SIZES = (1, 4, 16, 64, 256, _CONTEXT)
_PROCESSES = 6  # whatever the law, the median lies in the range of six with 1 - 2 / 2^6 = 97 % confidence
_HOW = (f"our numba kernel on one CPU thread, float32, 16 sequences of {_CONTEXT} tokens, blocks in random order; "
        f"median and range of {_PROCESSES} processes, a 97 % interval")


def _process(rounds: int) -> dict[int, float]:
    """Block size -> thread seconds, in a process of its own."""
    done = subprocess.run([sys.executable, str(_SCRIPT), str(rounds), *map(str, _SIZES)], check=True,
                          stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    return {int(size): seconds for size, seconds in json.loads(done.stdout).items()}


def _ratios(bench: Bench, base: int) -> dict[int, Spread]:
    """Times relative to blocks of `base`: ratios are taken inside a process. Both rows look at the same processes."""
    if "kernel times" not in bench.memory:
        bench.memory["kernel times"] = [_process(bench.count(20)) for _ in range(_PROCESSES)]
    found: list[dict[int, float]] = bench.memory["kernel times"]  # type: ignore[assignment]  # set above
    return {size: Spread.of([times[size] / times[base] for times in found]) for size in _SIZES}


def look_up(bench: Bench) -> Shown:
    """Decode attention over a scattered block table, and over one block a sequence. All of the interval is below 5 %,
    or it is not shown to be: half of it below is chance.
    """
    cost = _ratios(bench, _CONTEXT)[16]
    cost = Spread(*(one - 1 for one in (cost.median, cost.low, cost.high)))
    return Shown(cost.text("+.1%"), None if cost.low < 0.05 <= cost.high else cost.high < 0.05,
                 f"blocks of 16 against one block a sequence, which is a contiguous cache; {_HOW}"
                 + (", which holds 5 %: neither more nor less is shown" if cost.low < 0.05 <= cost.high else ""))


def block_sizes(bench: Bench) -> Shown:
    """The same over block sizes: small ones are slower where all of the interval is."""
    ratios = {size: ratio for size, ratio in _ratios(bench, 16).items() if size != _CONTEXT}
    told = ", ".join(f"{size}: {ratio.text('.2f')}" for size, ratio in ratios.items())
    return Shown(f"time relative to 16: {told}", ratios[1].low > 1.05,
                 f"blocks of 1 at least 5 % slower than of 16; {_HOW}. It looks a block up once for all its heads")

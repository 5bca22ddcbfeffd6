"""`python -m paged_kernels.bench`: correctness, then a table of times, in minutes, as JSON too.

Each shape is first compared with dense attention in float64, then timed, cold in the cache, beside each peer that can
be imported. Exit code 0; 1 where a result of ours is wrong or could not be had; 2 where there is nothing to run on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from paged_kernels.bench.exact import fault
from paged_kernels.bench.record import Record, Row, environment
from paged_kernels.bench.shapes import Shape, shapes
from paged_kernels.bench.subjects import OURS, SUBJECTS, draw, make, missing
from paged_kernels.bench.timing import cache_bytes, copies_beyond_cache, device, milliseconds, read_bandwidth

_ROOM = 0.8  # of the free memory


def main(argv: list[str]) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m paged_kernels.bench", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--shapes", choices=("full", "smoke"), default="full")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no new shape after so long (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"), help="JSON file, written as it goes")
    options = parser.parse_args(argv)
    try:
        where = device()
    except RuntimeError as error:
        print(f"paged_kernels.bench: {error}", file=sys.stderr)
        return 2
    absent = missing()
    record = Record(environment(where), read_bandwidth(where), absent)
    subjects = [name for name in SUBJECTS if name not in absent]
    end, wanted = time.monotonic() + 60 * options.minutes, list(shapes(options.shapes))
    try:
        for number, shape in enumerate(wanted, 1):
            why = "no time was left" if time.monotonic() > end else _too_large(shape, where)
            if why:
                record.left_out[str(shape)] = why
            else:
                print(f"{number}/{len(wanted)} {shape}", file=sys.stderr, flush=True)
                record.rows += _measured(shape, subjects, where)
            record.write(options.out)
        record.read_bandwidth_afterwards = read_bandwidth(where)
        record.write(options.out)
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
    print(record.table())
    print(f"\n{options.out}", file=sys.stderr)
    return 1 if any(row.failure for row in record.rows if row.subject == OURS) else 0


def _too_large(shape: Shape, where: torch.device) -> str:
    if where.type == "cpu":
        return ""
    torch.cuda.empty_cache()  # what is only kept for later is free
    free, _ = torch.cuda.mem_get_info(where)
    needed = 2 * shape.kv_bytes * copies_beyond_cache(shape.kv_bytes, where)  # once more in a row, for some peers
    return f"it needs {needed >> 30} GiB, {free >> 30} are free" if needed > _ROOM * free else ""


def _measured(shape: Shape, subjects: list[str], where: torch.device) -> list[Row]:
    """All subjects on one shape, ours first."""
    copies = copies_beyond_cache(shape.kv_bytes, where)
    cold = where.type == "cpu" or shape.kv_bytes * copies > cache_bytes(where)
    data, rows = draw(shape, copies, where), []
    for name in subjects:
        call = None  # the one before may hold all the data again, in a row
        row = Row(name, shape, cold=cold)
        rows.append(row)
        try:
            call = make(name, data)
            out = call(0)
            wrong = fault(data, out)
            if wrong:
                row.failure = f"WRONG: {wrong}"
                continue
            row.repeats_ms, row.timed = milliseconds(call, copies)
        except Exception as error:  # a peer's own words, and the next one's turn
            row.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long the report of a run of many requests takes, and how large it is: a benchmark, no test.

    python -m tests.report.million [REQUESTS]      # a million by default, eight tokens each
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pabench.load.manifest import read_manifest
from pabench.load.records import REQUEST_SCHEMA, REQUESTS_FILE
from pabench.report import write_report
from tests.report.synthetic import Made, write_run

_TOKENS, _USERS, _DURATION_S = 8, 8, 1000.0


def table(count: int) -> pa.Table:
    """`count` requests that were answered in full: first tokens after some 40 ms, then one about every 10 ms."""
    rng = np.random.default_rng(0)
    sent = np.sort(rng.uniform(0, _DURATION_S, count))
    gaps = np.concatenate([rng.gamma(4, 0.01, (count, 1)), rng.gamma(4, 0.0025, (count, _TOKENS - 1))], axis=1)
    times = sent[:, None] + np.cumsum(gaps, axis=1)
    offsets = pa.array(np.arange(0, count * _TOKENS + 1, _TOKENS), pa.int32())
    whole = dict.fromkeys(("output_tokens", "stream_tokens", "verified_tokens", "max_tokens"), _TOKENS)
    whole |= {"wrong_tokens": 0, "prompt_tokens": 64, "n": 1, "http_status": 200}
    columns = {name: np.full(count, value) for name, value in whole.items()}
    columns |= {"request_id": [f"r{at}" for at in range(count)], "index": np.arange(count),
                "user": np.arange(count) % _USERS, "intended_s": sent, "sent_s": sent, "first_s": times[:, 0],
                "last_s": times[:, -1], "end_s": times[:, -1], "outcome": ["ok"] * count,
                "finish_reasons": [["length"]] * count}
    columns |= {name: pa.ListArray.from_arrays(offsets, pa.array(values.ravel())) for name, values in {
        "token_times_s": times, "token_choices": np.zeros(times.shape, np.int64),
        "token_ids": np.full(times.shape, 300)}.items()}
    return pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in REQUEST_SCHEMA},
                    schema=REQUEST_SCHEMA)


def main(count: int = 1_000_000) -> None:
    """Make the run, time the report."""
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", Made("reference paged", users=_USERS, requests=60))
        pq.write_table(table(count), run / REQUESTS_FILE)
        manifest = read_manifest(run)
        manifest.outcomes = {name: count * (name == "ok") for name in manifest.outcomes}
        manifest.duration_s, manifest.window_s = _DURATION_S, (10.0, _DURATION_S - 10)
        manifest.write(run)
        start = time.perf_counter()
        out = Path(folder) / "report.html"
        write_report([run], out)
        print(f"{count:,} requests of {_TOKENS} tokens: {time.perf_counter() - start:.1f} s, "
              f"{out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

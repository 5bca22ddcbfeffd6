"""Four requests made by hand, and a run of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pabench.analysis import Run
from pabench.engines.base import EngineFacts
from pabench.load.manifest import new_manifest
from pabench.load.records import OUTCOMES, REQUEST_SCHEMA, TELEMETRY_SCHEMA, RequestRecord
from pabench.load.window import steady_window
from pabench.telemetry.vocabulary import KVFacts, KVSample
from tests.load.support import workload

# Two users, two requests each; four tokens a request, 100 ms to the first and 100 ms between them.
A = RequestRecord("a", 0, 0, intended_s=0.0, sent_s=0.01, first_s=0.11, last_s=0.41, end_s=0.42, outcome="ok",
                  prompt_tokens=10, max_tokens=4, output_tokens=4, stream_tokens=4, verified_tokens=4, wrong_tokens=0,
                  token_times_s=[0.11, 0.21, 0.31, 0.41], token_choices=[0] * 4)
B = RequestRecord("b", 1, 1, intended_s=0.0, sent_s=0.02, first_s=0.22, last_s=0.42, end_s=0.42, outcome="ok",
                  prompt_tokens=20, max_tokens=4, output_tokens=4, stream_tokens=4, verified_tokens=4, wrong_tokens=0,
                  token_times_s=[0.22, 0.22, 0.42, 0.42], token_choices=[0] * 4)
C = RequestRecord("c", 2, 0, intended_s=0.42, sent_s=0.42, first_s=0.52, last_s=0.82, end_s=0.82, outcome="wrong",
                  prompt_tokens=10, max_tokens=4, output_tokens=4, stream_tokens=4, verified_tokens=1, wrong_tokens=3,
                  token_times_s=[0.52, 0.62, 0.72, 0.82], token_choices=[0] * 4,
                  diagnosis='{"text": "expected output 1"}')
D = RequestRecord("d", 3, 1, intended_s=0.42, sent_s=0.42, end_s=0.9, outcome="error", error_kind="http",
                  prompt_tokens=10, max_tokens=4)


def frame(rows: list[RequestRecord]) -> pd.DataFrame:
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=REQUEST_SCHEMA).to_pandas()


def made(records: list[RequestRecord], samples: list[KVSample] = [], **manifest_fields: object) -> Run:  # noqa: B006
    facts = EngineFacts("reference", "m", 512, kv=KVFacts(block_size=10, num_blocks=10),
                        capabilities=frozenset({"kv_metrics"}))
    manifest = new_manifest(workload=workload(num_requests=4), seed=0, facts=facts, probe_preset="tiny", label="e",
                            url="http://h")
    fields: dict[str, object] = {
        "status": "complete", "duration_s": 0.9, "window_s": steady_window(records),
        "outcomes": {name: sum(r.outcome == name for r in records) for name in OUTCOMES},
    }
    telemetry = pa.Table.from_pylist([asdict(s) for s in samples], schema=TELEMETRY_SCHEMA).to_pandas()
    return Run(Path("run"), manifest.model_copy(update=fields | manifest_fields), frame(records), telemetry)

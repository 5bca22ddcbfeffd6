"""Run folders and conformance results made by arithmetic, written through the real writers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pabench.analysis.sides import Samples
from pabench.analysis.slo import SLO
from pabench.capacity import Attained, Search, search_capacity
from pabench.claims import Claim, Result, write_claims
from pabench.conformance.results import SPEC_VERSION, Header, ResultsWriter
from pabench.conformance.verdicts import Outcome, Verdict
from pabench.gate import Policy, decide
from pabench.gate.words import write_decision
from pabench.load.arrivals import ClosedArrivals, PoissonArrivals
from pabench.load.lengths import FixedLaw, UniformLaw
from pabench.load.manifest import ClientHealth, EngineRecord, Host, KVGeometry, Manifest
from pabench.load.records import OUTCOMES, RequestRecord, write_requests, write_telemetry
from pabench.load.workload import Workload
from pabench.telemetry.vocabulary import KVSample

CAPACITY_TOKENS = 4096
BLOCK_SIZE = 16

# A name, an error or an answer of an engine that tries to run in the report.
HOSTILE = "%{x}<img src=x onerror=\"document.title='pwned'\"></script><!-- ${1} \u202etxt"


@dataclass(frozen=True)
class Made:
    """What kind of engine and run to make. `reserve_tokens`: slots taken at admission; 0 is paged, on demand."""

    label: str
    users: int = 8
    requests: int = 60
    reserve_tokens: int = 0
    tells_memory: bool = True
    tells_split: bool = True
    wrong: int = 0
    errors: tuple[str, ...] = ()
    diagnosis: str = "A[5] = t3022 = request B, position 39"
    workload: str = "probe-rings"
    status: str = "complete"
    chunk: int = 1
    url: str = "http://127.0.0.1:8000"
    seed: int = 7
    engine_started_at: str | None = None
    started_at: str = "2026-01-02T03:04:05+00:00"
    slower: float = 1.0     # every step takes so many times as long
    version: str = "0.1.0"
    cpu: str = "Example CPU"
    cores: int = 2
    digest: str = ""
    rate: float | None = None   # stated as an open loop's; the requests come as `users` send them


def write_run(folder: Path, made: Made) -> Path:
    """A run folder of `made`."""
    folder.mkdir(parents=True)
    records, samples = _simulate(made)
    write_requests(folder, records)
    write_telemetry(folder, samples)
    _manifest(made, records).write(folder)
    return folder


def _simulate(made: Made) -> tuple[list[RequestRecord], list[KVSample]]:
    """A batch that steps: 4 ms and 0.4 ms for each running sequence; one token a step for each."""
    rng = np.random.default_rng(made.seed)
    lengths = zip(rng.integers(24, 160, made.requests), rng.integers(16, 96, made.requests), strict=True)
    waiting = [
        RequestRecord(request_id=f"r{i}", index=i, user=i % made.users, intended_s=0.0, prompt_tokens=int(prompt),
                      max_tokens=int(output))
        for i, (prompt, output) in enumerate(lengths)
    ]
    for record in waiting[: made.users]:
        record.sent_s = 0.001 * rng.random()
    queue, rest = waiting[: made.users], waiting[made.users :]
    running: list[RequestRecord] = []
    now, samples = 0.0, []
    while queue or running:
        while queue and _held(running, made) + _need(queue[0], made) <= CAPACITY_TOKENS:
            running.append(queue.pop(0))
            now += 0.00004 * running[-1].prompt_tokens
        now += made.slower * (0.004 + 0.0004 * len(running)) * float(rng.lognormal(0, 0.15))
        for record in list(running):
            record.token_times_s.append(now)
            record.token_choices.append(0)
            record.stream_tokens += 1
            if record.stream_tokens == record.max_tokens:
                running.remove(record)
                _finish(record, now, made)
                if rest:
                    following = rest.pop(0)
                    following.intended_s, following.sent_s = now, now + 0.0004 * rng.random()
                    queue.append(following)
        samples.append(_sample(now, running, queue, made))
    for record, text in zip(waiting, made.errors, strict=False):
        record.outcome, record.error_kind, record.error_text = "error", "stream", text
    for record in waiting[len(made.errors) : len(made.errors) + made.wrong]:
        record.outcome, record.wrong_tokens = "wrong", 2
        record.verified_tokens = record.stream_tokens - 2
        record.diagnosis = json.dumps({"text": made.diagnosis})
    return waiting, samples


def _finish(record: RequestRecord, now: float, made: Made) -> None:
    if made.chunk > 1:
        last = record.token_times_s[::-1]
        record.token_times_s = [last[i - i % made.chunk] for i in range(len(last))][::-1]
    record.first_s, record.last_s, record.end_s = record.token_times_s[0], now, now + 0.0002
    record.outcome, record.http_status, record.output_tokens = "ok", 200, record.stream_tokens
    record.verified_tokens, record.wrong_tokens = record.stream_tokens, 0
    record.token_ids = [300 + i for i in range(record.stream_tokens)]
    record.finish_reasons = ["length"]


def _need(record: RequestRecord, made: Made) -> int:
    return made.reserve_tokens or record.prompt_tokens + record.max_tokens


def _held(running: list[RequestRecord], made: Made) -> int:
    return sum(_need(record, made) for record in running)


def _sample(now: float, running: list[RequestRecord], queue: list[RequestRecord], made: Made) -> KVSample:
    sample = KVSample(time_s=now, running=float(len(running)), waiting=float(len(queue)))
    if not made.tells_memory:
        return sample
    live = sum(record.prompt_tokens + record.stream_tokens for record in running)
    if made.reserve_tokens:
        taken = made.reserve_tokens * len(running)
        reserved = sum(record.max_tokens - record.stream_tokens for record in running)
        internal, external = taken - live - reserved, (CAPACITY_TOKENS - taken) % made.reserve_tokens
    else:
        taken = sum(-(-(r.prompt_tokens + r.stream_tokens) // BLOCK_SIZE) * BLOCK_SIZE for r in running)
        reserved, internal, external = 0, taken - live, 0
    sample = replace(sample, kv_usage=taken / CAPACITY_TOKENS, preemptions=0.0)
    if not made.tells_split:
        return sample
    return replace(sample, token_states_tokens=float(live), reserved_tokens=float(reserved),
                   internal_waste_tokens=float(internal), external_waste_tokens=float(external))


def _manifest(made: Made, records: list[RequestRecord]) -> Manifest:
    outcomes = {name: sum(record.outcome == name for record in records) for name in OUTCOMES}
    end = max(record.end_s or 0.0 for record in records)
    kv = KVGeometry(block_size=BLOCK_SIZE, num_blocks=CAPACITY_TOKENS // BLOCK_SIZE,
                    kv_mode="contiguous" if made.reserve_tokens else "paged")
    return Manifest(
        status=made.status, command=["pabench", "run", "--url", made.url, "--label", made.label],  # type: ignore[arg-type]
        started_at=made.started_at, label=made.label, url=made.url,
        workload=Workload(
            name=made.workload, description="Synthetic.", prompt="probe",
            prompt_tokens=UniformLaw(law="uniform", max=160), output_tokens=FixedLaw(law="fixed", tokens=64),
            arrivals=ClosedArrivals(kind="closed", users=made.users) if made.rate is None
            else PoissonArrivals(kind="poisson", rate_per_s=made.rate),
            num_requests=made.requests,
        ),
        seed=made.seed, engine_started_at=made.engine_started_at, schedule_digest=made.digest,
        engine=EngineRecord(dialect="reference", model="probe-tiny", max_context_tokens=512, version=made.version,
                            kv=kv if made.tells_memory else None, capabilities=["token_ids", "stream"]),
        probe_preset="tiny",
        host=Host(cpu=made.cpu, cores=made.cores, memory_bytes=8 << 30, platform="Linux", python="3.11.7"),
        versions={"pabench": "0.1.0", "numpy": "2.0.0"}, git_commit="0123abc", outcomes=outcomes, duration_s=end,
        window_s=(0.1 * end, 0.9 * end),
        client=ClientHealth(loop_lag_p50_ms=0.05, loop_lag_p99_ms=0.1, loop_lag_max_ms=0.2,
                            lateness_p50_ms=0.1, lateness_p99_ms=0.3, lateness_max_ms=0.4, cpu_share=0.1, scrapes=50),
    )


def write_trace(path: Path, *, reserve_blocks: int, seq: object = 3, end: str | None = "closed") -> Path:
    """A block trace that began a second before the runs do: 64 tokens come in eight steps, then the sequence ends.

    `reserve_blocks`: owned from the start; 0 is paged, where a second sequence then shares the first two blocks, and
    both stay cached.
    """
    num_blocks = CAPACITY_TOKENS // BLOCK_SIZE
    lines: list[dict[str, object]] = [{
        "block_trace": 1, "started_at": "2026-01-02T03:04:04+00:00", "block_size": BLOCK_SIZE,
        "num_blocks": num_blocks, "kv": "contiguous" if reserve_blocks else "paged", "reservation": None,
    }]
    for step in range(1, 9):
        change: dict[str, object] = {"seq": seq, "request": 2, "tokens": 8 * step}
        if not reserve_blocks and step % 2:
            change |= {"keep": step // 2, "blocks": [10 + step // 2]}
        elif reserve_blocks and step == 1:
            change |= {"keep": 0, "blocks": list(range(reserve_blocks))}
        lines.append({"step": step, "s": 1 + 0.01 * step, "changed": [change]})
    if not reserve_blocks:
        lines.append({"step": 9, "s": 1.1, "changed": [
            {"seq": 4, "request": 3, "tokens": 40, "keep": 0, "blocks": [10, 11, 20]}]})
    lines.append({"step": 10, "s": 1.15, "left": [{"seq": 3, "why": "ended"}]})
    if not reserve_blocks:
        lines.append({"step": 11, "s": 1.2, "left": [{"seq": 4, "why": "ended"}], "cached": [10, 11]})
    if end is not None:
        lines.append({"end": end, "step": 12, "s": 60.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_findings(folder: Path, text: str = "sharegpt-mini, 8 users") -> None:
    """A gate's decision and a table of claims. `text` is what an engine, or a file, supplied."""
    pairs = dict.fromkeys(("tpot_p50_ms", "itl_p99_ms"), (8.0, 10.0, 9.0, 11.0, 10.5, 9.5))
    samples = [Samples(text, name, values, tuple(1.2 * value for value in values), paired=True)
               for name, values in pairs.items()]
    policy = Policy.model_validate({"metric": {"tpot_p50_ms": {"worse_by": 0.05}}})
    write_decision(decide(samples, policy, notes=[text]), folder)
    claims = [Claim(id="one", claim=text, source="a paper", published="2x", how="exact", show="module:function"),
              Claim(id="two", claim="another", source="a paper", published="3x", how="none", why=text)]
    write_claims([Result(claims[0], "reproduced", text, ""), Result(claims[1], "not shown", "–", text)],
                 folder / "claims.json")


def write_search(folder: Path, label: str, capacity_per_s: float, *, workload: str = "probe-rings",
                 finished: bool = True) -> Path:
    """A search of an engine that is in time with nearly all requests below its capacity, and with few above; a run at
    each rate that it tried.
    """
    def measure(rate: float, number: int) -> Attained:
        total = int(20 * rate) + 20
        return Attained(round(total / (1 + (rate / capacity_per_s) ** 8 / 9)), total)

    slo = SLO(ttft_ms=500, tpot_ms=50)
    found = search_capacity(measure, slo, from_rate=1, to_rate=64)
    for each in found.tried:
        write_run(folder / f"{each.rate_per_s:.6g}", Made(label, requests=16, rate=each.rate_per_s, workload=workload))
    Search(label=label, workload=workload, slo=slo, confidence=0.95, finished=finished, capacity=found).write(folder)
    return folder


def write_suite(folder: Path, rows: list[Verdict], *, exit_code: int = 0, url: str = "http://127.0.0.1:8000",
                engine: dict[str, object] | None = None, suite: str | None = None) -> Path:
    """A conformance result of `rows`."""
    header = Header(spec_version=SPEC_VERSION, pabench_version="0.1.0", profile="ci", seed=1,
                    started="2026-01-02T03:04:05Z", url=url,
                    engine=engine if engine is not None else {"dialect": "reference", "version": "0.1.0"}, suite=suite)
    with ResultsWriter(folder / "verdicts.jsonl") as writer:
        writer.header(header)
        for row in rows:
            writer.row(row)
        writer.footer(exit_code, 1.0, "complete")
    return folder


FAILURE_TEXT = """FAIL http/shared-prefix-divergence  (MUST, since 1)      impl: acme 0.4.1
  A request that diverges inside a shared block MUST NOT change what the other reads.
  case      block 16; A and B share 37 tokens; 2 concurrent; greedy 80 tokens
  expected  A[5] = t1187 (ring position 39 -> block 2, slot 7)
  actual    A[5] = t3022 = request B, position 39
  hint      the partial block is written by both: copy it before the first write"""


def passing_rows() -> list[Verdict]:
    """Rows of an engine that conforms, one case unsupported."""
    return [
        Verdict("http/ring-exact", case, "MUST", Outcome.PASS) for case in ("kB-1", "kB", "kB+1")
    ] + [
        Verdict("http/concurrent-isolation", "", "MUST", Outcome.PASS),
        Verdict("http/shared-prefix-divergence", "", "MUST", Outcome.PASS),
        Verdict("http/n-samples-isolated", "", "MUST", Outcome.UNSUPPORTED, reason="the engine takes no n"),
        Verdict("http/stream-equals-whole", "", "MUST", Outcome.PASS),
        Verdict("http/no-starvation", "", "SHOULD", Outcome.PASS),
    ]


def failing_rows(text: str = FAILURE_TEXT) -> list[Verdict]:
    """As `passing_rows`, with one FAIL."""
    return [
        replace(row, outcome=Outcome.FAIL, reason="A reads what B wrote", text=text, replay="case-91c2.json")
        if row.requirement == "http/shared-prefix-divergence" else row
        for row in passing_rows()
    ]

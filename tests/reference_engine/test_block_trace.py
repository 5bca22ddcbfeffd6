"""The trace of block ownership: replayed, it is what the allocator has after every step."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pabench.errors import EXIT_COULD_NOT_RUN, UsageError
from pabench.telemetry.block_trace import Replay, State, TraceHeader, read_block_trace, read_header
from reference_engine import block_trace
from reference_engine.__main__ import main
from reference_engine.block_trace import BlockTrace
from tests.reference_engine.helpers import greedy, rings

CONFIGS = st.fixed_dictionaries({
    "kv": st.sampled_from(["paged", "paged", "paged", "contiguous"]),
    "reservation": st.sampled_from(["max", "pow2", "oracle"]),
    "block_size": st.sampled_from([1, 4, 8]),
    "prefix_caching": st.booleans(),
    "preemption": st.sampled_from(["recompute", "swap"]),
    "speculation": st.sampled_from(["off", "ngram"]),
})
REQUESTS = st.lists(
    st.tuples(st.integers(15, 40), st.integers(1, 40), st.sampled_from([1, 1, 2, 3]), st.integers(0, 4), st.booleans()),
    min_size=1, max_size=6,
)


class Watched:
    """A traced engine; after each step and abort what the file tells is compared with what is."""

    def __init__(self, engine, path, **more):
        self.engine, self.path, self.reasons, self.num_read = engine, path, [], 1
        engine.trace = BlockTrace(path, engine.scheduler, **more)
        self.replay = Replay(read_header(path))

    def compare(self):
        lines = self.path.read_bytes().splitlines()
        for line in map(orjson.loads, lines[self.num_read :]):
            self.replay.apply(line)
            self.reasons += [left["why"] for left in line.get("left", ())]
        self.num_read = len(lines)
        running, allocator = self.engine.scheduler.running, self.engine.allocator
        size = allocator.block_size
        assert self.replay.tables == {seq.id: list(allocator.block_table(seq.id)) for seq in running}
        assert self.replay.cached == set(allocator.idle_blocks)
        for seq in running:
            assert -(-self.replay.tokens[seq.id] // size) == -(-seq.num_computed // size)
        states = [self.replay.state(block)[0] for block in range(allocator.num_blocks)]
        assert sum(state <= State.CACHED for state in states) == allocator.num_free_blocks

    def step(self):
        self.engine.step()
        self.compare()

    def drain(self):
        while self.engine.has_work:
            self.step()
        self.engine.trace.close()


@pytest.fixture
def at_once(monkeypatch):
    """Every line is in the file as soon as it is made."""
    monkeypatch.setattr(block_trace, "FLUSH_INTERVAL_S", -1.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(config=CONFIGS, requests=REQUESTS, spare=st.integers(0, 4))
def test_replayed_it_gives_the_tables_at_every_step(make_engine, at_once, tmp_path, config, requests, spare):
    size = config["block_size"]
    longest = max(-(-(length + 3 + made) // size) for length, made, *_ in requests)
    num_blocks = (longest + 1) * 3 + spare
    if config["kv"] == "contiguous":
        num_blocks = 1 << (4 * (96 // size) - 1).bit_length()
    engine = make_engine(**config, num_blocks=num_blocks, max_model_len=96, max_num_seqs=4, num_swap_blocks=64)
    path = tmp_path / "blocks.jsonl"
    path.unlink(missing_ok=True)
    watched = Watched(engine, path)
    prompts = rings(*(length for length, *_ in requests), seed=len(requests))
    for ring, (_, length, n, steps, abort) in zip(prompts, requests, strict=True):
        request = engine.add(ring.prompt, greedy(length, n=n))
        for _ in range(steps):
            watched.step()
        if abort:
            engine.abort(request)
            watched.compare()
    watched.drain()
    trace = read_block_trace(path)
    assert trace.end == "closed"
    covered = [float((trace.stop_s - trace.start_s)[trace.block == block].sum()) for block in range(num_blocks)]
    assert covered == pytest.approx([trace.end_s] * num_blocks)


@pytest.mark.parametrize(("preemption", "why"), [("recompute", "preempted"), ("swap", "swapped")])
def test_it_says_why_a_sequence_lost_its_blocks(make_engine, at_once, tmp_path, preemption, why):
    engine = make_engine(num_blocks=12, block_size=4, preemption=preemption, prefix_caching=False)
    watched = Watched(engine, tmp_path / "blocks.jsonl")
    for ring in rings(15, 16):
        engine.add(ring.prompt, greedy(20))
    watched.drain()
    assert set(watched.reasons) == {why, "ended"}
    assert watched.reasons.count("ended") == 2


def test_forks_share_and_finished_prefixes_stay_cached(make_engine, at_once, tmp_path):
    engine = make_engine(num_blocks=32, block_size=4)
    watched = Watched(engine, tmp_path / "blocks.jsonl")
    (ring,) = rings(16)
    request = engine.add(ring.prompt, greedy(8, n=3))
    watched.step()
    ids = [seq.id for seq in request.sequences]
    shared = [block for block in range(32) if watched.replay.state(block)[0] is State.SHARED]
    assert len(shared) == len(ring.prompt) // 4 + bool(len(ring.prompt) % 4)
    assert {watched.replay.state(block)[1] for block in shared} == {ids[0]}
    watched.drain()
    states = [watched.replay.state(block) for block in range(32)]
    assert (State.CACHED, -1) in states
    assert {state for state, _ in states} == {State.CACHED, State.FREE}


def test_a_reservation_is_owned_and_empty(make_engine, at_once, tmp_path):
    engine = make_engine(kv="contiguous", num_blocks=64, block_size=8, max_model_len=128)
    watched = Watched(engine, tmp_path / "blocks.jsonl")
    (ring,) = rings(15)
    engine.add(ring.prompt, greedy(30))
    watched.step()
    states = [watched.replay.state(block)[0] for block in range(64)]
    assert [states.count(state) for state in (State.FULL, State.PARTIAL, State.EMPTY)] == [2, 1, 13]
    watched.drain()


TABLES = st.tuples(st.integers(0, 4), st.lists(st.integers(0, 9), unique=True, max_size=6)).map(
    lambda drawn: [-1] * drawn[0] + drawn[1]
)


@given(tables=st.lists(TABLES, max_size=5))
def test_any_table_follows_any_other(tables):
    """Holes behind a window, copies on write, cuts, and whole new tables."""
    replay = Replay(TraceHeader(datetime.now(UTC), 4, 10, "paged", None))
    old = []
    for table in tables:
        change = block_trace._table_change(old, table)
        replay.apply({"changed": [{"seq": 1, "request": 1, "tokens": 0, **change}]})
        assert replay.tables[1] == table
        assert [replay.state(block)[1] for block in range(10)] == [1 if block in table else -1 for block in range(10)]
        old = table


def traced_run(make_engine, path, **more):
    engine = make_engine(num_blocks=64, block_size=4)
    engine.trace = BlockTrace(path, engine.scheduler, **more)
    for ring in rings(20, 30, 40):
        engine.add(ring.prompt, greedy(30))
    while engine.has_work:
        engine.step()
    engine.trace.close()


def test_a_file_cut_anywhere_is_read_to_its_last_whole_line(make_engine, at_once, tmp_path):
    path = tmp_path / "blocks.jsonl"
    traced_run(make_engine, path)
    data = path.read_bytes()
    whole = read_block_trace(path)
    header = data.index(b"\n") + 1
    for length in (header, header + 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        cut = read_block_trace(path)
        assert (cut.end, cut.end_s <= whole.end_s) == ("cut off", True)
    path.write_bytes(data[: header - 1])
    assert read_header(path).num_blocks == 64


def test_it_stops_at_its_limit_and_the_engine_goes_on(make_engine, tmp_path, capsys):
    path = tmp_path / "blocks.jsonl"
    traced_run(make_engine, path, max_bytes=2000)
    assert 2000 < path.stat().st_size < 3500
    assert orjson.loads(path.read_bytes().splitlines()[-1])["end"] == "limit"
    assert read_block_trace(path).end == "limit"
    said = capsys.readouterr().err
    assert "has reached its limit" in said
    assert said.count("\n") == 1


def test_a_full_disk_ends_the_trace_and_not_the_engine(make_engine, tmp_path, capsys, at_once):
    engine = make_engine(num_blocks=64, block_size=4)
    engine.trace = BlockTrace(tmp_path / "blocks.jsonl", engine.scheduler)
    engine.trace._file.close()
    engine.trace._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    (ring,) = rings(20)
    engine.add(ring.prompt, greedy(30))
    while engine.has_work:
        engine.step()
    engine.trace.close()
    assert "No space left" in capsys.readouterr().err


def test_an_old_trace_is_never_overwritten(make_engine, tmp_path, tiny_probe, capsys):
    path = tmp_path / "blocks.jsonl"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        BlockTrace(path, make_engine().scheduler)
    with pytest.raises(UsageError, match="is no folder"):
        BlockTrace(tmp_path / "none/blocks.jsonl", make_engine().scheduler)
    code = main(["--model", str(tiny_probe), "--port", "0", "--trace", str(path)])
    assert (code, path.read_text()) == (EXIT_COULD_NOT_RUN, "mine")
    assert "exists already, expected a new file" in capsys.readouterr().err

"""The simulation has the engine's memory step by step, leaps change nothing, and published figures come out of it."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.traces.trace import Prefixes
from reference_engine.config import EngineConfig
from reference_engine.scheduling.sequence import SamplingParams
from reference_engine.simulation import Simulator, StepLaw, Workload, synthetic
from reference_engine.simulation.simulator import TOO_BIG, TOO_LONG
from reference_engine.simulation.workload import prefix_keys

LAW = StepLaw(1, 0.1, 0.01, 0.001, 0.01)
ONE_A_STEP = StepLaw(1, 0, 0, 0, 0)


def config(**options) -> EngineConfig:
    return EngineConfig(**{"max_model_len": 160, "num_blocks": 64, "prefix_caching": False, **options})


def workload(rows, *, prefixes=None) -> Workload:
    """(arrival, prompt, output) of each request, in order of arrival."""
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return Workload("rows", columns[:, 0], columns[:, 1].astype(np.int32), columns[:, 2].astype(np.int32), prefixes)


def ran(settings, work, law=LAW, **options):
    """(memory at the end of each step, simulator that has run to the end)."""
    seen = []
    simulator = Simulator(settings, work, law, observer=seen.append, **options)
    while simulator.advance():
        pass
    return seen, simulator


def prefixes_of(ids) -> Prefixes:
    """Of prompts with these ids of blocks of 16 tokens."""
    return Prefixes(16, np.array([*chain.from_iterable(ids)], np.int64), np.cumsum([0, *map(len, ids)]))


def slots(split) -> tuple[int, ...]:
    """A KVSplit in the order of Memory."""
    return split.token_states, split.reserved, split.internal_waste, split.external_waste, split.free


# Time.


def test_a_request_takes_what_the_law_says():
    _, simulator = ran(config(), workload([(3, 5, 3)]))
    prefill, *decodes = 1 + 5 * 0.1 + 5 * 0.001, 1 + 0.01 + 6 * 0.001, 1 + 0.01 + 7 * 0.001
    outcome = simulator.outcome(1.0).to_json()
    assert outcome["ttft_s"]["mean"] == pytest.approx(prefill)
    assert outcome["e2e_s"]["mean"] == pytest.approx(prefill + sum(decodes))
    assert outcome["tpot_s"]["mean"] == pytest.approx(sum(decodes) / 2)
    assert (outcome["steps"], outcome["generated_tokens"]) == (3, 3)


def test_swapping_takes_its_time():
    rows = [(0, 30, 20), (0, 30, 20)]
    outcomes = [ran(config(num_blocks=4, preemption="swap"), workload(rows), law)[1].outcome(1.0)
                for law in (ONE_A_STEP, StepLaw(1, 0, 0, 0, 0.25))]
    blocks = outcomes[0].swapped_out_blocks + outcomes[0].swapped_in_blocks
    assert blocks > 0
    assert outcomes[1].virtual_s - outcomes[0].virtual_s == pytest.approx(0.25 * 16 * blocks)


def test_an_idle_engine_waits_for_the_next_arrival():
    _, simulator = ran(config(), workload([(0, 4, 1), (100, 4, 1)]), ONE_A_STEP)
    outcome = simulator.outcome(1.0).to_json()
    assert (outcome["virtual_s"], outcome["idle_s"], outcome["e2e_s"]["max"]) == (101, 99, 1)
    assert outcome["kv_while_busy"]["seconds"] == 2


@pytest.mark.parametrize("text", ["base_s", "base_s=x", "base=1", "base_s=-1", "base_s=nan", "per_prefill_token_s=1"])
def test_a_law_that_is_none_is_refused(text):
    with pytest.raises(UsageError):
        StepLaw.parse(text)


def test_a_law_survives_its_own_text():
    assert StepLaw.parse(str(StepLaw())) == StepLaw()
    assert StepLaw.parse("base_s=1") == ONE_A_STEP


# Memory.


@st.composite
def simulations(draw):
    """(config, workload): pools from roomy to so small that sequences are preempted."""
    rows = draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1.5, 40]), st.integers(1, 70), st.integers(1, 90)),
                         min_size=1, max_size=25))
    gaps, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    prefixes = None
    if draw(st.booleans()):
        ids = [draw(st.lists(st.integers(0, 1), min_size=0, max_size=int(-(-p // 16)))) for p in prompts]
        prefixes = prefixes_of(ids)
    size = draw(st.sampled_from([1, 4, 16]))
    chunked = draw(st.booleans())
    settings = config(
        kv=draw(st.sampled_from(["paged", "paged", "contiguous"])), block_size=size,
        reservation=draw(st.sampled_from(["max", "pow2", "oracle"])),
        num_blocks=draw(st.sampled_from([256, 300, 700])) // size, max_num_seqs=draw(st.sampled_from([2, 8, 32])),
        chunked_prefill=chunked, max_num_batched_tokens=draw(st.sampled_from([32, 40])) if chunked else 200,
        preemption=draw(st.sampled_from(["recompute", "swap", "wait"])), num_swap_blocks=draw(st.sampled_from([3, 99])),
        batching=draw(st.sampled_from(["continuous", "continuous", "static"])), prefix_caching=draw(st.booleans()),
    )
    return settings, workload(list(zip(np.cumsum(gaps), prompts, outputs, strict=True)), prefixes=prefixes)


@given(simulations())
def test_leaps_change_nothing_and_memory_is_what_the_allocator_says(case):
    settings, work = case
    seen = []

    def check(memory):
        split = simulator.allocator.split(simulator.scheduler.written())
        assert memory[3:] == slots(split)
        seen.append(memory)

    simulator = Simulator(settings, work, LAW, leap=False, observer=check)
    while simulator.advance():
        simulator.scheduler.check_integrity()
    leaping, leaper = ran(settings, work)
    assert leaping == seen
    outcome = simulator.outcome(1.0)
    assert leaper.outcome(1.0).to_json() == outcome.to_json()

    assert outcome.num_finished + sum(outcome.refused.values()) == len(work) == simulator.num_done
    done = np.isfinite(outcome.end_s)
    assert outcome.generated_tokens == work.output_tokens[done].sum()
    assert (outcome.first_s[done] <= outcome.end_s[done]).all()
    assert (work.arrival_s[done] < outcome.first_s[done]).all()
    assert simulator.allocator.num_free_blocks == settings.num_blocks
    for memory in seen:
        assert sum(memory[3:6]) + memory.free == settings.num_blocks * settings.block_size
        assert memory.num_running <= settings.max_num_seqs


@pytest.mark.parametrize("options", [
    {"num_blocks": 12}, {"num_blocks": 12, "preemption": "swap"}, {"num_blocks": 16, "kv": "contiguous"},
    {"num_blocks": 10, "max_num_batched_tokens": 8, "max_num_seqs": 8},
])
def test_the_engine_with_a_model_has_the_same_memory(make_engine, options):
    settings = {"max_model_len": 64, "prefix_caching": False, **options}
    rows = [(0, 5 + 7 * i % 30, 30 - 5 * i % 23) for i in range(9)]
    engine = make_engine(**settings)
    complete, real = engine.scheduler.complete, []

    def complete_and_look(step):
        complete(step)
        real.append(engine.allocator.split(engine.scheduler.written()))

    engine.scheduler.complete = complete_and_look
    for _, prompt, output in rows:
        engine.add(tuple(range(20, 20 + prompt)), SamplingParams(output, ignore_eos=True))
    while engine.has_work:
        engine.step()

    simulated, simulator = ran(config(**settings), workload(rows))
    assert [memory[3:] for memory in simulated] == [slots(split) for split in real]
    stats = engine.scheduler.stats
    assert (stats.preemptions > 0) == (options.get("kv") != "contiguous"), "the pool is to be too small when paged"
    outcome = simulator.outcome(1.0)
    assert (outcome.preemptions, outcome.recomputed_tokens, outcome.swapped_in_blocks) == (
        stats.preemptions, stats.recomputed_tokens, stats.swapped_in_blocks)


def test_requests_that_never_fit_are_refused_and_counted():
    settings = config(max_model_len=100, num_blocks=4)
    _, simulator = ran(settings, workload([(0, 60, 41), (0, 60, 20), (0, 40, 10)]))
    outcome = simulator.outcome(1.0)
    assert outcome.refused == {TOO_LONG: 1, TOO_BIG: 1}
    assert outcome.num_finished == 1


def test_a_long_queue_is_not_made_real():
    simulator = Simulator(config(max_num_seqs=8), workload([(0, 20, 5)] * 3000), LAW)
    longest = 0
    while simulator.advance():
        longest = max(longest, len(simulator.scheduler.waiting))
    assert longest <= 8 + 1
    assert simulator.outcome(1.0).num_finished == 3000


# Prefixes.


def test_keys_stand_for_all_that_comes_before():
    a, b = prefix_keys((7, 8, 9), 32, 96, 16), prefix_keys((7, 5, 9), 32, 96, 16)
    assert [x == y for x, y in zip(a, b, strict=True)] == [True, True, False, False, False, False]
    assert len(set(a)) == 6
    assert prefix_keys((7, 8), 32, 57, 16) == a[:3]


@pytest.mark.parametrize("block_size", [4, 16])
def test_prefix_hits_are_those_of_the_trace(block_size):
    ids = [(1, 2, 3), (1, 2, 4), (1, 2, 3), (), (1,), (1, 2, 3)]
    prompts = [48, 48, 40, 48, 16, 48]  # the last token is always computed, so a hit stops a block short of the end
    prefixes = prefixes_of(ids)
    rows = [(100 * i, prompt, 2) for i, prompt in enumerate(prompts)]
    settings = config(block_size=block_size, num_blocks=1024 // block_size, prefix_caching=True)
    outcome = ran(settings, workload(rows, prefixes=prefixes))[1].outcome(1.0)
    last = 16 - block_size
    assert outcome.prefix_hits == 0 + 32 + (36 if block_size == 4 else 32) + 0 + last + (32 + last)
    assert outcome.prefix_queries == sum(prompts)


def test_a_block_size_that_does_not_divide_the_hashes_is_refused():
    prefixes = Prefixes(512, np.zeros(1, np.int64), np.array([0, 1]))
    with pytest.raises(UsageError, match="512"):
        Simulator(config(block_size=24, prefix_caching=True), workload([(0, 5, 5)], prefixes=prefixes), LAW)


# Published figures.

# vLLM paper, Fig. 2: token states, reserved, internal waste, all that is not owned; Fig. 13: mean batch.
# As a small simulation gives them (12 GiB of OPT-13B's KV: 15 728 slots, one token a step, saturated).
FIGURE_2 = {
    ("contiguous", "max"): (21.2, 13.9, 56.0, 8.9, 7.00),
    ("contiguous", "pow2"): (27.8, 18.6, 15.4, 38.2, 9.32),
    ("contiguous", "oracle"): (37.9, 25.6, 0.0, 36.5, 12.76),
}


def figure_2(kv, reservation):
    settings = EngineConfig(2048, kv=kv, reservation=reservation, num_blocks=983, max_num_seqs=256,
                            max_num_batched_tokens=8192, prefix_caching=False)
    _, simulator = ran(settings, synthetic("gamma:0.25,161", "exp:338", 1000, 2048), ONE_A_STEP)
    means = simulator.outcome(1.0).tally.means(only_waiting=True)
    return [means[name] for name in ("token_states", "reserved", "internal_waste", "free", "batch")]


@pytest.mark.parametrize(("kv", "reservation"), FIGURE_2)
def test_reservations_waste_what_the_paper_says(kv, reservation):
    *percents, batch = figure_2(kv, reservation)
    *expected, expected_batch = FIGURE_2[kv, reservation]
    assert percents == pytest.approx(expected, abs=3)
    assert batch == pytest.approx(expected_batch, rel=0.1)
    assert sum(percents) == pytest.approx(100)


def test_pages_waste_next_to_nothing():
    token_states, *_, batch = figure_2("paged", "max")
    assert token_states == pytest.approx(96.5, abs=1)
    assert batch == pytest.approx(33.3, rel=0.15)


def test_a_seed_makes_the_same_workload_again():
    a, b, c = (synthetic("gamma:0.25,161", "exp:338", 500, 2048, seed=seed, rate=2.0) for seed in (5, 5, 6))
    outcomes = [ran(config(max_model_len=2048, num_blocks=983), work)[1].outcome(1.0).to_json() for work in (a, b, c)]
    assert outcomes[0] == outcomes[1] != outcomes[2]
    assert a.arrival_s[0] == 0
    assert a.arrival_s[-1] == pytest.approx(250, rel=0.2)

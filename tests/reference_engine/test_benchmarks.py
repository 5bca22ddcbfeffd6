"""The benchmarks run, and count what they say they count. Nothing here depends on how fast anything is."""

from __future__ import annotations

import asyncio
import json
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers

from pabench.engines.wording import COMMON_WORDS
from pabench.errors import EXIT_COULD_NOT_RUN, UsageError
from reference_engine.arguments import parser
from reference_engine.benchmarks import allocator, mechanisms, scheduler, slowed, soak
from reference_engine.benchmarks.measurement import Measurement
from reference_engine.benchmarks.random_llama import SIZES, LlamaShape, build_random_llama
from reference_engine.benchmarks.serving import Bench, Job, greedy, serve
from reference_engine.benchmarks.timing import Spread, in_turns
from reference_engine.benchmarks.trace import ALLOCATE, APPEND, FREE, draw_trace
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.allocator import blocks_for
from reference_engine.serving import command
from tests.reference_engine.helpers import assert_exact, drain, ids, rings

SMALL = LlamaShape(hidden=64, layers=2, heads=2, kv_heads=1, mlp=96, vocab=300, head_dim=32, max_positions=256)


# Random Llama.

def test_sizes_are_what_their_names_say():
    assert {name: shape.num_parameters for name, shape in SIZES.items()} == {
        "2M": 1_919_808, "5M": 5_583_680, "0.1B": 100_092_672, "0.5B": 512_881_920}


@pytest.mark.parametrize("window", [None, 8])
def test_transformers_and_the_engine_load_it_and_agree(tmp_path, window):
    shape = LlamaShape(**{name: getattr(SMALL, name) for name in SMALL.__slots__ if name != "window"}, window=window)
    build_random_llama(shape, tmp_path, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer(" ".join(COMMON_WORDS[:40]))["input_ids"]
    assert len(prompt) == len(set(prompt)) == 40  # a token a word, none of them unknown
    engine = Engine.from_folder(tmp_path, EngineConfig(max_model_len=128, num_blocks=32))
    request = engine.add(tuple(prompt), greedy(6))
    made = ids(drain(engine)[request.id][0])
    with torch.inference_mode():
        for token in made:
            assert int(model(torch.tensor([prompt])).logits[0, -1].argmax()) == token
            prompt.append(token)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name in "ab":
        build_random_llama(SMALL, tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


# Allocator.

def test_a_trace_is_a_possible_life_of_its_sequences():
    trace = draw_trace(20, 6, seed=3)
    held, most = {}, 0
    for what, i in trace.ops:
        if what == ALLOCATE:
            assert i not in held
            held[i] = trace.prompt_tokens[i]
        elif what == APPEND:
            held[i] += 1
        else:
            assert (what, held.pop(i)) == (FREE, len(trace.tokens[i]))
        assert len(held) <= 6
        most = max(most, sum(blocks_for(count, 16) for count in held.values()))
    assert not held
    assert most <= trace.num_blocks <= most * 1.1
    appends = sum(what == APPEND for what, _ in trace.block_ops)
    prompts = sum(blocks_for(count, 16) for count in trace.prompt_tokens)
    assert prompts + appends == trace.total_blocks  # each remaining append begins a block


def test_every_comparison_runs_and_only_the_cached_ones_have_hits():
    trace = draw_trace(12, 4, seed=0)
    found = allocator.measure(trace, None, 2)
    assert list(found) == [f"ours {name}" for name in allocator.COMPARISONS]
    hits = {name: figures["hits"] for name, figures in found.items()}
    assert all(len(set(values)) == 1 for values in hits.values())
    assert hits["ours tokens"] == [0, 0]
    assert hits["ours caching"] == hits["ours hashing"]
    assert hits["ours caching"][0] > 0
    assert allocator.show(trace, found).row_count == len(allocator.COMPARISONS)


def test_a_python_without_vllm_is_refused(capsys):
    assert allocator.main(["--sequences", "5", "--repeats", "1", "--vllm-python", "no-such-python"]) == 2
    assert "cannot be run" in capsys.readouterr().err
    with (pytest.raises(UsageError, match="ended"),
          allocator.vllm_worker(Path("false"), draw_trace(5, 2, seed=0)) as ask):  # a command that does nothing
        ask("pool")


# Scheduler.

def test_steps_are_measured_in_every_setting():
    found = scheduler.measure((4,), 20, 1)
    assert len(found) == 4
    for figures in found.values():
        assert 0 < figures["p50"][0] <= figures["p99"][0] <= figures["worst"][0]


# Soak.

def test_a_short_soak_is_exact_and_meets_every_mechanism(tiny_probe):
    engine = soak.soak_engine(tiny_probe)
    done = []
    result = soak.soak(engine, 80, seed=1, told=done.append)
    assert result.wrong == 0
    assert result.finished + result.aborted == done[-1] == 80
    assert result.aborted > 0
    assert result.tokens > 0
    assert len(result.memory) == 10
    stats = engine.scheduler.stats
    assert min(stats.preemptions, stats.swapped_out_blocks, stats.recomputed_tokens, stats.prefix_hits) > 0


def test_a_wrong_token_is_noticed(tiny_probe):
    engine = soak.soak_engine(tiny_probe)
    engine.runner.model.norm.zero_()  # all logits are equal
    assert soak.soak(engine, 12).wrong > 0


# Mechanisms.

@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, scale=0.01)


@pytest.mark.parametrize("one", mechanisms.MEASUREMENTS, ids=lambda one: one.mechanism)
def test_every_arm_of_every_mechanism_serves_what_it_says(one, bench, monkeypatch):
    tokens, figures = [], set()

    def short(max_tokens, **more):
        return greedy(min(max_tokens, 8), **more)

    monkeypatch.setattr("reference_engine.benchmarks.sharing.greedy", short)
    if "Speculation" not in one.mechanism:  # those check whole answers
        monkeypatch.setattr("reference_engine.benchmarks.steering.greedy", short)
    monkeypatch.setitem(SIZES, "5M", LlamaShape(32, 2, 1, 1, 48, vocab=4000, head_dim=32, max_positions=2048))
    for run in one.arms(bench).values():
        found = run()
        figures.add(tuple(found))
        tokens.append(found["tokens/s"])
    assert len(tokens) > 1
    assert all(value > 0 for value in tokens)
    assert len(figures) == 1, "all arms tell the same figures"


def test_the_switches_are_the_commands_own():
    known = {option for action in parser()._actions for option in action.option_strings}
    told = {word.strip(",") for one in mechanisms.MEASUREMENTS for word in one.switch.split() if word.startswith("--")}
    assert told <= known
    assert len(told) >= 8


def test_served_requests_are_counted(tiny_probe):
    engine = Engine.from_folder(tiny_probe, EngineConfig(max_model_len=128, num_blocks=32))
    (ring,) = rings(20)
    served = serve(engine, [Job(ring.prompt, greedy(9)), Job(ring.prompt, greedy(9), at_step=3)])
    for answer in served.answers:
        assert_exact(ring, answer, 9)
    assert (served.output_tokens, served.steps) == (18, 12)
    assert served.requests[1].num_cached_tokens == 16
    assert served.prompt_tokens_computed(0) == 2 * 23 - 16
    assert served.peak_blocks == 3  # two of each, one shared
    assert served.held == (6 * 2 + 6 * 1) / 12 - 2 / 12  # none is left after its last step


def test_the_table_and_the_file_hold_every_figure(tmp_path, monkeypatch, capsys):
    values = iter([1.0, 10.0, 3.0, 20.0])
    fake = Measurement("Fake", "--fake", "nothing",
                       lambda bench: {name: lambda: {"speed": next(values)} for name in ("off", "on")})
    monkeypatch.setattr(mechanisms, "MEASUREMENTS", (fake,))
    out = tmp_path / "out.json"
    assert mechanisms.main(["--repeats", "2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["mechanisms"][0]["arms"] == {
        "off": {"speed": [1.0, 3.0]}, "on": {"speed": [10.0, 20.0]}}
    shown = capsys.readouterr().out
    assert "off: 2 (1–3)" in shown
    assert "on: 15 (10–20), ×7.50" in shown
    assert mechanisms.main(["--only", "nothing of that name"]) == EXIT_COULD_NOT_RUN


def test_arms_take_turns():
    order = []
    arms = {name: lambda name=name: order.append(name) or {"x": len(order)} for name in "ab"}
    assert in_turns(arms, 2) == {"a": {"x": [1, 3]}, "b": {"x": [2, 4]}}
    assert order == ["a", "b", "a", "b"]
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_a_spread_is_inside_as_a_whole_and_is_told_where_it_shows():
    spread = Spread.of([2.75, 2.63, 2.67])
    assert (spread.inside(2.63, 2.75), spread.inside(2.64, 3), spread.inside(2, 2.7)) == (True, False, False)
    assert (spread.text(".2f"), spread.text(".0f")) == ("2.67 (2.63–2.75)", "3")


@pytest.mark.parametrize(("name", "number"), [
    ("allocator", "--repeats"), ("scheduler", "--steps"), ("soak", "--requests"), ("mechanisms", "--scale"),
    ("random_llama", None),
])
def test_commands_refuse_nonsense_and_explain_themselves(name, number, capsys):
    main = import_module(f"reference_engine.benchmarks.{name}").main
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert f"python -m reference_engine.benchmarks.{name}" in capsys.readouterr().out
    if number is not None:
        assert main([number, "0"]) == EXIT_COULD_NOT_RUN
        assert number in capsys.readouterr().err


# The slowed engine.

def test_a_slowed_engine_waits_as_long_as_its_factors_say_and_answers_alike(tiny_probe, monkeypatch):
    config = EngineConfig(max_model_len=128, num_blocks=32)
    slept: list[float] = []
    clock = [0.0]

    def now() -> float:
        clock[0] += 0.5  # each look at the clock comes half a second later
        return clock[0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(slowed.time, "perf_counter", now)
    monkeypatch.setattr(slowed.time, "sleep", sleep)
    monkeypatch.setattr(slowed.SlowedEngine, "decode_factor", 9.0)
    made = {}
    for kind in (Engine, slowed.SlowedEngine):
        engine = kind.from_folder(tiny_probe, config)
        request = engine.add(rings(9)[0].prompt, greedy(4))
        made[kind] = ids(drain(engine)[request.id][0])
    assert made[Engine] == made[slowed.SlowedEngine]
    assert len([seconds for seconds in slept if seconds > 1]) == 3  # the prompt's step is not slowed


def test_the_slowed_command_serves_the_slowed_engine(tiny_probe, monkeypatch):
    """It puts its own classes in the place of those that the command makes; where that misses, nothing is slower."""
    for owner, name in ((command, "Engine"), (command, "AsyncEngine"), (slowed.SlowedEngine, "decode_factor"),
                        (slowed.SlowedAnswers, "end_factor")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    served = []
    monkeypatch.setattr(command, "run", lambda args, config, sock: served.append(command.build_engine(args, config)))
    assert slowed.main(["--decode", "2", "--end", "3", "--model", str(tiny_probe), "--port", "0"]) == 0
    assert [type(engine) for engine in served] == [slowed.SlowedEngine]
    assert served[0].decode_factor == 2.0
    assert command.AsyncEngine is slowed.SlowedAnswers
    assert slowed.SlowedAnswers.end_factor == 3.0


@pytest.mark.parametrize("late", ["first", "end"])
def test_slowed_answers_come_late_at_one_place_alone(late, monkeypatch):
    held: list[float] = []

    async def hold(began_s: float, factor: float) -> None:
        held.append(factor)

    async def batches(self, requests):
        for batch in ("one", "two", "three"):
            yield batch

    async def played() -> list[object]:
        seen: list[object] = []
        async for batch in slowed.SlowedAnswers.generate(object.__new__(slowed.SlowedAnswers), []):
            seen += [*held, batch]
            held.clear()
        return seen + held

    monkeypatch.setattr(slowed, "_hold", hold)
    monkeypatch.setattr(slowed.AsyncEngine, "generate", batches)
    monkeypatch.setattr(slowed.SlowedAnswers, f"{late}_factor", 1.5)
    first, end = (1.5, 1.0) if late == "first" else (1.0, 1.5)
    assert asyncio.run(played()) == [first, "one", 1.0, "two", 1.0, "three", end]


def test_holding_lasts_a_share_of_what_has_passed():
    began_s = time.perf_counter() - 0.2
    asyncio.run(slowed._hold(began_s, 1.5))
    assert 0.3 <= time.perf_counter() - began_s < 3
    asyncio.run(slowed._hold(began_s - 1e6, 1.0))  # not at all


def test_a_factor_below_one_is_refused(capsys):
    assert slowed.main(["--decode", "0.5", "--model", "x"]) == EXIT_COULD_NOT_RUN
    assert "factors are 1 or more: got --decode 0.5" in capsys.readouterr().err

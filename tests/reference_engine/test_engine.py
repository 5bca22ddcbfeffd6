"""The engine on the KV probe: every answer is exact, whatever memory and batch do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pabench.errors import UsageError
from pabench.probe import check_answer, draw_fork
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.memory.allocator import IntegrityError
from reference_engine.runner import attention_backend
from reference_engine.scheduling.sequence import SamplingParams
from tests.reference_engine.helpers import SPEC, assert_exact, assert_idle, drain, greedy, ids, rings


@pytest.mark.parametrize("kv", ["paged", "contiguous"])
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_rings_around_block_edges_together(make_engine, kv, block_size):
    engine = make_engine(kv=kv, block_size=block_size, num_blocks=8192 // block_size)
    prompts = rings(12, 13, 14, 28, 29, 30, 61, 62)
    requests = [engine.add(ring.prompt, greedy(70)) for ring in prompts]
    made = drain(engine)
    for ring, request in zip(prompts, requests, strict=True):
        assert_exact(ring, ids(made[request.id][0]), 70)
    assert_idle(engine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rings_in_low_precision(tiny_probe, dtype):
    engine = Engine.from_folder(tiny_probe, EngineConfig(max_model_len=512, check_integrity=True), dtype=dtype)
    prompts = rings(15, 100, 230)
    requests = [engine.add(ring.prompt, greedy(40)) for ring in prompts]
    made = drain(engine)
    for ring, request in zip(prompts, requests, strict=True):
        assert_exact(ring, ids(made[request.id][0]), 40)


def test_answers_do_not_depend_on_the_batch(make_engine):
    prompts = rings(10, 25, 40, 33)
    alone = []
    for ring in prompts:
        engine = make_engine()
        request = engine.add(ring.prompt, greedy(30))
        alone.append(ids(drain(engine)[request.id][0]))
    engine = make_engine()
    together = [engine.add(ring.prompt, greedy(30)) for ring in prompts]
    made = drain(engine)
    assert [ids(made[request.id][0]) for request in together] == alone


@pytest.mark.parametrize("budget", [4, 7, 16, 100])
def test_chunked_prefill_is_exact(make_engine, budget):
    engine = make_engine(max_num_batched_tokens=budget, max_num_seqs=4)
    prompts = rings(50, 64, 15, 90, 33)
    requests = [engine.add(ring.prompt, greedy(20)) for ring in prompts]
    made = drain(engine)
    for ring, request in zip(prompts, requests, strict=True):
        assert_exact(ring, ids(made[request.id][0]), 20)
    assert_idle(engine)


@pytest.mark.parametrize("budget", [8, 2048])
def test_a_tiny_pool_preempts_and_loses_nothing(make_engine, budget):
    engine = make_engine(num_blocks=24, block_size=8, max_num_seqs=8, max_num_batched_tokens=budget)
    prompts = rings(*[15 + i for i in range(12)])
    requests = [engine.add(ring.prompt, greedy(60)) for ring in prompts]
    made = drain(engine)
    for ring, request in zip(prompts, requests, strict=True):
        assert_exact(ring, ids(made[request.id][0]), 60)
    assert engine.scheduler.stats.preemptions > 5
    assert engine.stats.generation_tokens == 12 * 60
    assert engine.stats.prompt_tokens == sum(len(ring.prompt) for ring in prompts)
    assert_idle(engine)


def test_the_first_to_arrive_is_never_preempted(make_engine):
    engine = make_engine(num_blocks=12, block_size=8, max_num_seqs=8)
    prompts = rings(*[15] * 6)
    requests = [engine.add(ring.prompt, greedy(60)) for ring in prompts]
    ended = [request.id for request, output in _stepwise(engine) if output.finish_reason]
    assert ended[0] == requests[0].id
    assert engine.scheduler.stats.preemptions > 0


def _stepwise(engine):
    while engine.has_work:
        yield from engine.step()


def test_a_request_that_fills_the_whole_pool_runs_and_one_token_more_is_refused(make_engine):
    engine = make_engine(num_blocks=4, block_size=16)
    (ring,) = rings(20)
    most = 4 * 16 - len(ring.prompt) + 1  # the last token is never written
    request = engine.add(ring.prompt, greedy(most))
    assert_exact(ring, ids(drain(engine)[request.id][0]), most)
    with pytest.raises(UsageError, match="do not fit into the KV cache of 4 blocks of 16"):
        engine.add(ring.prompt, greedy(most + 1))
    assert not engine.has_work


@pytest.mark.parametrize(("prompt", "params", "message"), [
    ((), greedy(4), "no tokens"),
    ((5, 4096), greedy(4), "token id 4096"),
    ((-1,), greedy(4), "token id -1"),
    (tuple(range(500)), greedy(13), "maximum context length is 512"),
    ((5,), greedy(4, n=65), "at most 64 sequences"),
    ((5,), greedy(400, n=40), "do not fit"),
])
def test_what_can_never_be_served_is_refused_at_once(make_engine, prompt, params, message):
    engine = make_engine()
    with pytest.raises(UsageError, match=message):
        engine.add(prompt, params)
    assert not engine.has_work


@pytest.mark.parametrize("kv", ["paged", "contiguous"])
def test_n_samples_follow_their_own_branch_of_a_fork(make_engine, kv):
    engine = make_engine(kv=kv, num_blocks=1024)
    fork = draw_fork(SPEC, np.random.default_rng(3), 21)
    request = engine.add(fork.prompt, SamplingParams(max_tokens=50, n=16, temperature=1.0, seed=5, ignore_eos=True))
    made = drain(engine)[request.id]
    assert sorted(made) == list(range(16))
    branches = set()
    for outputs in made.values():
        check = check_answer(fork, ids(outputs))
        assert (check.verified, check.wrong) == (50, 0)
        branches.add(outputs[0].token_id)
    assert len(branches) == 2
    assert_idle(engine)


def test_n_samples_share_the_prompt(make_engine):
    engine = make_engine(num_blocks=256, block_size=16)
    (ring,) = rings(94)  # 97 prompt tokens: six full blocks and one slot
    engine.add(ring.prompt, greedy(8, n=8))
    engine.step()
    engine.step()
    assert engine.allocator.num_blocks - engine.allocator.num_free_blocks == 6 + 8


@pytest.mark.parametrize("kv", ["paged", "contiguous"])
def test_forks_survive_memory_that_runs_out(make_engine, kv):
    engine = make_engine(kv=kv, num_blocks=32, block_size=8, max_model_len=96, max_num_seqs=8)
    prompts = rings(20, 21, 22, 23)
    requests = [engine.add(ring.prompt, greedy(40, n=2)) for ring in prompts]
    made = drain(engine)
    for ring, request in zip(prompts, requests, strict=True):
        for outputs in made[request.id].values():
            assert_exact(ring, ids(outputs), 40)
    assert_idle(engine)


def test_seeded_samples_do_not_depend_on_batch_or_preemption(make_engine):
    params = SamplingParams(max_tokens=40, n=2, temperature=30.0, seed=11, ignore_eos=True)
    (ring, *others) = rings(20, 21, 22, 23, 24)
    engine = make_engine()
    request = engine.add(ring.prompt, params)
    alone = drain(engine)[request.id]
    engine = make_engine(num_blocks=24, block_size=8)
    for other in others:
        engine.add(other.prompt, greedy(60))
    request = engine.add(ring.prompt, params)
    crowded = drain(engine)[request.id]
    assert engine.scheduler.stats.preemptions > 0
    assert {i: ids(o) for i, o in crowded.items()} == {i: ids(o) for i, o in alone.items()}
    assert ids(alone[0]) != ids(alone[1])


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
@pytest.mark.parametrize("n", [1, 4])
def test_abort_frees_all_and_harms_nobody(make_engine, steps, n):
    """Aborted while waiting, in the middle of its prompt, and while decoding."""
    engine = make_engine(max_num_batched_tokens=16, max_num_seqs=8)
    ring, other = rings(60, 30)
    doomed = engine.add(ring.prompt, greedy(50, n=n))
    kept = engine.add(other.prompt, greedy(50))
    before = []
    for _ in range(steps):
        before += engine.step()
    engine.abort(doomed)
    engine.abort(doomed)
    made = drain(engine)
    assert doomed.id not in made
    first = [output for request, output in before if request is kept]
    assert_exact(other, ids(first + made[kept.id][0]), 50)
    assert_idle(engine)


def test_gauges_split_is_exact_while_running(make_engine):
    engine = make_engine(num_blocks=64, block_size=16)
    (ring,) = rings(17)  # 20 prompt tokens
    engine.add(ring.prompt, greedy(10))  # 29 slots in the end
    engine.step()
    split = engine.snapshot().split
    assert (split.token_states, split.reserved, split.internal_waste, split.external_waste) == (20, 9, 3, 0)
    drain(engine)


def test_one_token_requests_and_forks_of_one_token(make_engine):
    engine = make_engine()
    (ring,) = rings(15)
    request = engine.add(ring.prompt, greedy(1, n=3))
    made = drain(engine)[request.id]
    assert [ids(made[i]) for i in range(3)] == [ring.expected(1)] * 3
    assert {outputs[0].finish_reason for outputs in made.values()} == {"length"}
    assert_idle(engine)


def test_eos_stop_ids_stop_strings_and_min_tokens(make_engine):
    engine = make_engine()
    (ring,) = rings(15)
    expected = ring.expected(12)

    def run(**params):
        request = engine.add(ring.prompt, SamplingParams(**{"max_tokens": 12, **params}))
        return drain(engine)[request.id][0]

    outputs = run(stop_token_ids=frozenset([expected[4]]))
    assert ids(outputs) == expected[:5]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", expected[4])
    word = f"t{expected[6]}"
    outputs = run(stop=(word,))
    assert "".join(o.text for o in outputs) == " ".join(f"t{t}" for t in expected[:6]) + " "
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", word)
    outputs = run(stop=(word,), include_stop_str_in_output=True)
    assert "".join(o.text for o in outputs) == " ".join(f"t{t}" for t in expected[:7])
    outputs = run(stop=(word,), min_tokens=9)
    assert len(outputs) == 12
    outputs = run(stop_token_ids=frozenset([expected[4]]), min_tokens=8)
    assert expected[4] not in ids(outputs)  # forbidden until then, so the ring is left
    engine.sampler.eos_token_ids = frozenset([expected[2]])
    assert ids(run()) == expected[:3]
    assert len(run(ignore_eos=True)) == 12


def test_the_engine_notices_a_write_into_a_shared_block(make_engine):
    engine = make_engine()
    engine.allocator._must_copy_last = lambda held: False
    (ring,) = rings(20)
    engine.add(ring.prompt, greedy(10, n=2))
    with pytest.raises(IntegrityError, match="not its own"):
        drain(engine)


@pytest.mark.parametrize("asked", ["auto", "numba", "torch"])
def test_the_attention_backend_is_chosen_once_and_told(make_engine, asked):
    engine = make_engine(attention_backend=asked)
    chosen = "torch" if asked == "torch" else "numba"
    assert (engine.config.attention_backend, engine.runner.backend) == (chosen, chosen)


def test_a_device_without_the_attention_backend_is_refused():
    assert [attention_backend("auto", torch.device(name)) for name in ("cuda", "cpu", "mps", "xpu")] == [
        "triton", "numba", "torch", "torch"]
    with pytest.raises(UsageError, match="'numba' runs on a CPU, the device is cuda"):
        attention_backend("numba", torch.device("cuda"))


def test_and_so_before_any_weight_is_read(tiny_probe, monkeypatch):
    monkeypatch.setattr("reference_engine.engine.load_model", lambda *_: pytest.fail("weights were read"))
    config = EngineConfig(max_model_len=64, attention_backend="numba")
    with pytest.raises(UsageError, match="'numba' runs on a CPU, the device is meta"):
        Engine.from_folder(tiny_probe, config, device="meta")


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_exact_in_every_backend_and_dtype(tiny_probe, backend, dtype):
    engine = Engine.from_folder(tiny_probe, EngineConfig(
        max_model_len=512, num_blocks=256, max_num_batched_tokens=64, speculation="ngram", attention_backend=backend,
    ), dtype=dtype)
    requests = {}
    for ring in rings(3, 17, 40, 64, 90):
        requests[engine.add(ring.prompt, greedy(60)).id] = ring
    made = drain(engine)
    for request, ring in requests.items():
        assert_exact(ring, ids(made[request][0]), 60)

"""Measured on this machine's CPU, in process: the reference engine with a mechanism off and on, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from pabench.claims import Bench, Shown, claims_module
from pabench.probe import check_answer, draw_rings, preset
from reference_engine.benchmarks import sharing, steering
from reference_engine.benchmarks.serving import Job, chat_lengths, greedy, serve, words
from reference_engine.benchmarks.timing import in_turns
from reference_engine.engine import Engine

engines = claims_module("engines")
_TURNS = 5


def batching(bench: Bench) -> Shown:
    """Continuous against static."""
    arms = engines.in_repeats(bench, steering.batching)
    steps, tokens = (engines.ratio(arms, figure, "static", "continuous") for figure in ("steps", "tokens/s"))
    return Shown(f"{tokens.text('.2f')}x tokens/s, {steps.text('.2f')}x steps", tokens.low > 1.1,
                 f"{steering.batching.setting}; {engines.CPU}")


def prefixes(bench: Bench) -> Shown:
    """80 of 100 share a system prompt."""
    arms = engines.in_repeats(bench, sharing.prefix_caching)
    work, tokens = (engines.ratio(arms, figure, "off", "on") for figure in ("prompt tokens computed", "tokens/s"))
    return Shown(f"{work.text('.0%')} of the prompt tokens computed, {tokens.text('.2f')}x tokens/s",
                 work.high < 0.5 and tokens.low > 1.1, f"{sharing.prefix_caching.setting}; {engines.CPU}")


def shared_memory(bench: Bench) -> Shown:
    """Blocks of four samples of a prompt."""
    blocks = engines.ratio(engines.in_repeats(bench, sharing.samples), "peak blocks", "4 requests", "n = 4")
    return Shown(f"{blocks.text('.0%')} of the blocks", blocks.high < 0.6, sharing.samples.setting)


def kv_heads(bench: Bench) -> Shown:
    """Bytes of a token's keys and values: of the pool that is allocated, and by 2 L H d."""
    models, told, right = engines.models(bench), {}, True
    for heads in (8, 2, 1):
        engine = models.engine(models.llama(hidden=512, heads=8, kv_heads=heads), num_blocks=16)
        told[heads] = sharing.kv_bytes_a_token(engine)
        shape = engine.runner.model.config
        right &= told[heads] == 2 * shape.num_layers * heads * shape.head_dim * 4
    gqa, mqa = told[8] / told[2], told[8] / told[1]
    return Shown(f"GQA 8:2 {gqa:g}x, MQA 8:1 {mqa:g}x smaller", right and (gqa, mqa) == (4, 8),
                 "bytes of the pool in float32, which are 2 L H d of the shape; its speed is kv-heads-speed's")


def kv_heads_speed(bench: Bench) -> Shown:
    """Tokens/s of the same three models, in turns."""
    arms = engines.in_repeats(bench, sharing.kv_heads)
    gqa, mqa = (engines.ratio(arms, "tokens/s", "MHA (8 KV heads)", name) for name in ("GQA (2)", "MQA (1)"))
    return Shown(f"GQA 8:2 {gqa.text('.2f')}x, MQA 8:1 {mqa.text('.2f')}x the tokens/s", min(gqa.low, mqa.low) > 1,
                 f"{sharing.kv_heads.setting}; a random Llama on a CPU, in process; all of the repetitions faster")


def narrow(bench: Bench) -> Shown:
    """Each knob alone."""
    models = engines.models(bench)
    sizes = {}
    knobs = {"both wide": {}, "int8 weights": {"weight_dtype": "int8"}, "int8 KV": {"kv_dtype": "int8"}}
    for name, config in knobs.items():
        engine = models.engine(models.llama(), **config)
        weights = sum(linear.weight.nbytes for layer in engine.runner.model.layers for linear in layer.linears())
        sizes[name] = (weights, sharing.kv_bytes_a_token(engine))
    wide, weights, kv = sizes.values()
    return Shown(f"int8 weights: matrices {weights[0] / wide[0]:.2f}x, KV {weights[1] / wide[1]:.2f}x; "
                 f"int8 KV: {kv[0] / wide[0]:.2f}x, {kv[1] / wide[1]:.2f}x",
                 weights[1] == wide[1] and kv[0] == wide[0] and weights[0] < wide[0] and kv[1] < wide[1],
                 "bytes; int8 keys and values carry a scale a head and token")


def speculation(bench: Bench) -> Shown:
    """N-gram drafts off and on."""
    arms = engines.in_repeats(bench, steering.ngram)
    times = engines.ratio(arms, "tokens/s", *arms)
    return Shown(f"{times.text('.2f')}x tokens/s in the same paged cache", times.low > 1,
                 f"{steering.ngram.setting}: its best case")


def out_of_blocks(bench: Bench) -> Shown:
    """Recompute, swap and wait on the probe, in a pool that is too small: every token is checked."""
    models, spec, told, right = engines.models(bench), preset("tiny"), [], True
    for kind in ("recompute", "swap", "wait"):
        engine = models.engine(models.probe("tiny"), preemption=kind, num_blocks=24, max_model_len=256, max_num_seqs=16,
                               prefix_caching=False)
        rings = draw_rings(spec, np.random.default_rng(bench.seed), [24] * 12)
        served = serve(engine, [Job(ring.prompt, greedy(96)) for ring in rings])
        answers = zip(rings, served.answers, strict=True)
        good = sum(check_answer(ring, answer).verified == 96 for ring, answer in answers)
        stats = engine.scheduler.stats
        told.append(f"{kind}: {good} of {len(rings)} right, {stats.preemptions} preemptions")
        right &= good == len(rings) and (stats.preemptions > 0 or kind == "wait")
    return Shown("; ".join(told), right, "12 rings of 27 tokens in and 96 out, in 24 blocks of 16")


def preemption_cost(bench: Bench) -> Shown:
    """Recompute against swap, whole runs."""
    arms = engines.in_repeats(bench, steering.preemption)
    times = engines.ratio(arms, "tokens/s", "swap", "recompute")
    return Shown(f"recompute {times.text('.2f')}x the tokens/s of swap", times.inside(*engines.EVEN),
                 f"{steering.preemption.setting}; {engines.CPU}, whose host memory is as near as its pool")


def recompute_by_block(bench: Bench) -> Shown:
    """Processor time of computing 512 tokens again, over block sizes, in turns."""
    models, prompt = engines.models(bench), words(np.random.default_rng(bench.seed), 512)
    sizes = (16, 1, 64, 256)
    fresh = {size: models.engine(models.llama(), block_size=size, num_blocks=1024 // size, prefix_caching=False)
               for size in sizes}

    def arm(size: int) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            start = time.process_time()
            _seconds(fresh[size], prompt, 1)
            return {"seconds": time.process_time() - start}
        return run

    names = {size: str(size) for size in sizes}
    arms = in_turns({name: arm(size) for size, name in names.items()}, 1 + _TURNS)
    arms = {name: {"seconds": figures["seconds"][1:]} for name, figures in arms.items()}  # the first one warms up
    ratios = {size: engines.ratio(arms, "seconds", "16", names[size]) for size in sorted(sizes) if size != 16}
    told = ", ".join(f"{size}: {ratio.text('.2f')}" for size, ratio in ratios.items())
    low, high = engines.EVEN
    return Shown(f"time relative to 16: {told}", all(ratio.inside(low, high) for ratio in ratios.values()),
                 f"512 tokens; {low:g} to {high:g} is called the same, in each of {_TURNS} turns; {engines.CPU}")


def roofs(bench: Bench) -> Shown:
    """Time of a token when a prompt is computed and when one sequence decodes, beside the machine's own balance."""
    models = engines.models(bench)
    engine = models.engine(models.llama(hidden=512, heads=8, kv_heads=8), prefix_caching=False)
    prompt = words(np.random.default_rng(bench.seed), 900)
    prefill = median(_seconds(engine, prompt, 1) for _ in range(3)) / 900
    decode = (median(_seconds(engine, prompt[:8], 65) for _ in range(3)) - 8 * prefill) / 64
    bandwidth, flops = _roofs()
    balance = flops / bandwidth
    return Shown(f"decode {decode / prefill:.0f}x the time of a prompt's token; this CPU does {balance:.0f} FLOP in "
                 "the time of a byte, decode asks 0.5, a prompt of 900 450", decode > 2 * prefill and balance > 0.5,
                 "float32: 2 FLOP a weight of 4 bytes, shared by all tokens of a step; copy and matrix product in the "
                 "same run")


def _seconds(engine: Engine, prompt: tuple[int, ...], output: int) -> float:
    return serve(engine, [Job(prompt, greedy(output))]).seconds


def _roofs() -> tuple[float, float]:
    """Bytes a second of a large copy, FLOP a second of a matrix product; the best of five."""
    source, square = torch.ones(64 << 20, dtype=torch.uint8), torch.randn(1024, 1024)
    target = torch.empty_like(source)

    def best(work: Callable[[], object]) -> float:
        took = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            took.append(time.perf_counter() - start)
        return min(took)

    return 2 * source.nbytes / best(lambda: target.copy_(source)), 2 * 1024**3 / best(lambda: square @ square)


def one_text(bench: Bench) -> Shown:
    """One greedy request among batches of others, again and again: how many different answers, and whether anything
    that depends on the batch is there to change them. A second text might be a bug of ours: no count makes a verdict.
    """
    models, rng = engines.models(bench), np.random.default_rng(bench.seed)
    engine = models.engine(models.llama(), prefix_caching=False)
    prompt, answers, runs = words(rng, 60), set(), bench.count(100)
    for _ in range(runs):
        others = [Job(words(rng, int(rng.integers(4, 200))), greedy(int(rng.integers(4, 48))))
                  for _ in range(int(rng.integers(0, 7)))]
        answers.add(tuple(serve(engine, [Job(prompt, greedy(48)), *others]).answers[0]))
    random = torch.Generator().manual_seed(bench.seed)
    differ = _rows_that_differ(*(torch.randn(size, 256, generator=random) for size in (64, 256)))
    return Shown(f"{differ} of 64 rows of a matrix product differ in bits from the same rows alone; distinct texts in "
                 f"{runs} runs: {len(answers)}", None,
                 "bits that depend on the batch are the claim's cause; its effect on texts is not shown, and there are "
                 "no batch-invariant products to compare with. 48 tokens of a random Llama in float32 on a CPU, 0 to 6 "
                 "others beside it")


def _rows_that_differ(rows: torch.Tensor, weight: torch.Tensor) -> int:
    """How many rows of `rows @ weight` are other bits when each is multiplied alone."""
    alone = torch.cat([row[None] @ weight for row in rows])
    return int((rows @ weight != alone).any(dim=1).sum())


def tree_cost(bench: Bench) -> Shown:
    """Time spent in the prefix cache, of the whole, where nothing is ever found; the median of the repetitions."""
    runs = sorted((_cache_seconds(bench) for _ in range(engines.REPEATS)), key=lambda run: run[0] / run[1])
    spent, seconds = runs[engines.REPEATS // 2]
    low, high = (spent / seconds for spent, seconds in (runs[0], runs[-1]))
    return Shown(f"{spent:.3f} of {seconds:.1f} s ({spent / seconds:.2%})", spent / seconds < 0.003,
                 "our hash chain, with its hashing and all of allocate, publish and free; not a radix tree. "
                 f"{engines.REPEATS} runs: {low:.2%} to {high:.2%}; {engines.CPU}")


def _cache_seconds(bench: Bench) -> tuple[float, float]:
    """Of one run: seconds in the calls that keep the prefix cache, and seconds in all."""
    models, rng = engines.models(bench), np.random.default_rng(bench.seed)
    engine = models.engine(models.llama(), num_blocks=2048)
    spent = [0.0]
    # The scheduler hashes the chain just before it allocates and publishes; none of these calls another of them.
    for owner, names in ((engine.allocator, ("allocate", "publish", "free")), (engine.scheduler, ("_extend_keys",))):
        for name in names:
            setattr(owner, name, _timed(getattr(owner, name), spent))
    served = serve(engine, [Job(words(rng, p), greedy(o)) for p, o in chat_lengths(rng, bench.count(100))])
    return spent[0], served.seconds


def _timed(function: Callable[..., object], spent: list[float]) -> Callable[..., object]:
    def call(*args: object, **more: object) -> object:
        start = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            spent[0] += time.perf_counter() - start
    return call

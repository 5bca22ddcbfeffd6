"""Measured on this machine's CPU, in process: the reference engine with a mechanism off and on, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from paged_kernels import KVCache, plan_attention

from pabench.claims import Bench, Shown
from pabench.probe import check_answer, draw_rings, preset
from reference_engine.benchmarks import sharing, steering
from reference_engine.benchmarks.measurement import Measurement
from reference_engine.benchmarks.serving import Bench as Models
from reference_engine.benchmarks.serving import Job, chat_lengths, greedy, serve, words
from reference_engine.benchmarks.timing import in_turns
from reference_engine.engine import Engine

torch.set_num_threads(1)  # a second one spins, and with anything else on the machine it costs more than it gives
_REPEATS = 3
_CPU = "a random Llama of 5.6 M parameters on a CPU, in process"
Arms = dict[str, dict[str, float]]


def _models(bench: Bench) -> Models:
    """Models, loaded once for all rows."""
    found = bench.memory.setdefault("models", Models(bench.folder, bench.scale))
    assert isinstance(found, Models), "nothing else is kept under this key"
    return found


def _run(bench: Bench, one: Measurement) -> Arms:
    """Arm -> figure -> median of the repetitions; a measurement that two rows need is run once."""
    if one.mechanism not in bench.memory:
        found = in_turns(one.arms(_models(bench)), _REPEATS)
        bench.memory[one.mechanism] = {arm: {figure: median(values) for figure, values in figures.items()}
                                       for arm, figures in found.items()}
    return bench.memory[one.mechanism]  # type: ignore[return-value]  # set above


def _ratio(arms: Arms, figure: str, one: str, other: str) -> float:
    return arms[other][figure] / arms[one][figure]


def sequences(bench: Bench) -> Shown:
    """Sequences held in one pool."""
    arms = _run(bench, sharing.layouts)
    told = {name.removeprefix("contiguous "): _ratio(arms, "sequences held", name, "paged")
            for name in arms if name != "paged"}
    return Shown(", ".join(f"{times:.2f}x of {name}" for name, times in told.items()), 2 <= told["max"] <= 4,
                 f"mean over steps, the queue's end included; {sharing.layouts.setting}")


def throughput(bench: Bench) -> Shown:
    """Tokens/s in one pool."""
    times = _ratio(_run(bench, sharing.layouts), "tokens/s", "contiguous max", "paged")
    return Shown(f"{times:.2f}x", 2 <= times <= 4,
                 f"{_CPU}: a step of a CPU takes longer with each sequence in it, so a larger batch buys little; on "
                 "the KV probe over HTTP see docs/benchmarks.md")


def utilisation(bench: Bench) -> Shown:
    """Share of the slots in use that hold tokens, sampled at every step while requests wait."""
    shares = {}
    for name, config in {"contiguous": {"kv": "contiguous", "reservation": "max"}, "paged": {"kv": "paged"}}.items():
        rng = np.random.default_rng(bench.seed)
        engine = _models(bench).engine(_models(bench).llama(), num_blocks=256, max_model_len=512, prefix_caching=False,
                                       **config)
        for prompt, output in chat_lengths(rng, bench.count(96)):
            engine.add(words(rng, prompt), greedy(output))
        seen = []
        while engine.has_work:
            engine.step()
            split = engine.allocator.split({seq.id: seq.num_computed for seq in engine.scheduler.running})
            if engine.scheduler.waiting:
                owned = engine.allocator.num_blocks * engine.allocator.block_size
                seen.append(split.token_states / owned)
        shares[name] = float(np.mean(seen)) if seen else float("nan")
    return Shown(f"contiguous {shares['contiguous']:.0%}, paged {shares['paged']:.0%}",
                 shares["contiguous"] <= 0.4 and shares["paged"] >= 0.8, sharing.layouts.setting)


def look_up(bench: Bench) -> Shown:
    """Decode attention over a scattered block table, and over one block a sequence, which is a contiguous cache."""
    sequences, context = 16, 1024
    times = _kernel_times(sequences, context, (16, context))
    return Shown(f"{times[16] / times[context] - 1:+.1%}", times[16] / times[context] < 1.05,
                 "our numba kernel on one CPU thread, float32, blocks of 16 in random order against one block a "
                 "sequence. "
                 "GPU kernels were not run: the paper's 20-26 % is theirs")


def kernel_block_sizes(bench: Bench) -> Shown:
    """The same over block sizes."""
    times = _kernel_times(16, 1024, (1, 4, 16, 64, 256))
    told = ", ".join(f"{size}: {seconds / times[16]:.2f}" for size, seconds in times.items())
    return Shown(f"time relative to 16: {told}", times[1] > 1.05 * times[16],
                 "our numba kernel on one CPU thread, which looks a block up once for all its heads")


def _kernel_times(sequences: int, context: int, sizes: tuple[int, ...]) -> dict[int, float]:
    """Thread seconds of one decode over paged caches of several block sizes, the best of turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        works = {size: _decode(sequences, context, size) for size in sizes}
        best = dict.fromkeys(sizes, float("inf"))
        for _ in range(8):
            for size, work in works.items():
                start = time.thread_time()
                work()
                best[size] = min(best[size], time.thread_time() - start)
        return best
    finally:
        torch.set_num_threads(threads)


def _decode(sequences: int, context: int, block_size: int) -> Callable[[], torch.Tensor]:
    blocks, kv_heads, group, head_dim = -(-context // block_size), 4, 4, 64
    cache = KVCache(*(torch.randn(sequences * blocks, block_size, kv_heads, head_dim) for _ in range(2)))
    tables = torch.randperm(sequences * blocks).view(sequences, blocks)
    query = torch.randn(sequences, kv_heads * group, head_dim)
    plan = plan_attention(tables, torch.full((sequences,), context), torch.arange(sequences + 1), block_size,
                          backend="numba")
    return lambda: plan.attend(query, cache, scale=head_dim**-0.5)


def batching(bench: Bench) -> Shown:
    """Continuous against static."""
    arms = _run(bench, steering.batching)
    steps, tokens = (_ratio(arms, figure, "static", "continuous") for figure in ("steps", "tokens/s"))
    return Shown(f"{tokens:.2f}x tokens/s, {steps:.2f}x steps", tokens > 1.1, f"{steering.batching.setting}; {_CPU}")


def prefixes(bench: Bench) -> Shown:
    """80 of 100 share a system prompt."""
    arms = _run(bench, sharing.prefix_caching)
    work, tokens = (_ratio(arms, figure, "off", "on") for figure in ("prompt tokens computed", "tokens/s"))
    return Shown(f"{work:.0%} of the prompt tokens computed, {tokens:.2f}x tokens/s", work < 0.5 and tokens > 1.1,
                 f"{sharing.prefix_caching.setting}; {_CPU}")


def shared_memory(bench: Bench) -> Shown:
    """Blocks of four samples of a prompt."""
    arms = _run(bench, sharing.samples)
    blocks = _ratio(arms, "peak blocks", "4 requests", "n = 4")
    return Shown(f"{blocks:.0%} of the blocks", blocks < 0.6, sharing.samples.setting)


def kv_heads(bench: Bench) -> Shown:
    """Bytes of a token's keys and values."""
    arms = _run(bench, sharing.kv_heads)
    gqa, mqa = (_ratio(arms, "KV bytes a token", name, "MHA (8 KV heads)") for name in ("GQA (2)", "MQA (1)"))
    return Shown(f"GQA 8:2 {gqa:g}x, MQA 8:1 {mqa:g}x smaller", (gqa, mqa) == (4, 8), "exact: bytes of the pool")


def narrow(bench: Bench) -> Shown:
    """Each knob alone."""
    models = _models(bench)
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
    arms = _run(bench, steering.ngram)
    off, on = arms.values()
    times = on["tokens/s"] / off["tokens/s"]
    return Shown(f"{times:.2f}x tokens/s in the same paged cache", times > 1,
                 f"{steering.ngram.setting}: its best case")


def out_of_blocks(bench: Bench) -> Shown:
    """Recompute, swap and wait on the probe, in a pool that is too small: every token is checked."""
    models, spec, told, right = _models(bench), preset("tiny"), [], True
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
    arms = _run(bench, steering.preemption)
    times = _ratio(arms, "tokens/s", "swap", "recompute")
    return Shown(f"recompute {times:.2f}x the tokens/s of swap", 0.8 <= times <= 1.25,
                 f"{steering.preemption.setting}; {_CPU}, whose host memory is as near as its pool")


def roofs(bench: Bench) -> Shown:
    """Time of a token when a prompt is computed and when one sequence decodes, beside the machine's own balance."""
    models = _models(bench)
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
    models, rng = _models(bench), np.random.default_rng(bench.seed)
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
    runs = sorted((_cache_seconds(bench) for _ in range(_REPEATS)), key=lambda run: run[0] / run[1])
    spent, seconds = runs[_REPEATS // 2]
    low, high = (spent / seconds for spent, seconds in (runs[0], runs[-1]))
    return Shown(f"{spent:.3f} of {seconds:.1f} s ({spent / seconds:.2%})", spent / seconds < 0.003,
                 "our hash chain, with its hashing and all of allocate, publish and free; not a radix tree. "
                 f"{_REPEATS} runs: {low:.2%} to {high:.2%}; {_CPU}")


def _cache_seconds(bench: Bench) -> tuple[float, float]:
    """Of one run: seconds in the calls that keep the prefix cache, and seconds in all."""
    models, rng = _models(bench), np.random.default_rng(bench.seed)
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

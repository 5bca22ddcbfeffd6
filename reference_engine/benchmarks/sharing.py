"""Mechanisms that save blocks or computation by sharing, and the layouts of memory that they are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference_engine.benchmarks.measurement import Arm, Arms, measurement
from reference_engine.benchmarks.serving import Bench, Job, Served, chat_lengths, greedy, serve, words
from reference_engine.engine import Engine


def _memory(served: Served) -> dict[str, float]:
    return {"peak blocks": served.peak_blocks, "tokens/s": served.tokens_per_s}


@measurement("Prefix caching", "--no-enable-prefix-caching",
             "100 requests, 80 of them with one system prompt of 256 tokens; 32 tokens of their own, 16 out")
def prefix_caching(bench: Bench) -> Arms:
    """Prompt tokens that are computed, and what that does to throughput."""
    def arm(on: bool) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            system = words(rng, 256)
            jobs = [Job((system if i % 5 else ()) + words(rng, 32), greedy(16)) for i in range(bench.count(100))]
            engine = bench.engine(bench.llama(), prefix_caching=on, max_num_seqs=16)
            served = serve(engine, jobs)
            computed = served.prompt_tokens_computed(engine.scheduler.stats.recomputed_tokens)
            return {"prompt tokens computed": computed, "tokens/s": served.tokens_per_s}
        return run
    return {"off": arm(False), "on": arm(True)}


@measurement("Block sharing, n = 4", "n", "8 prompts of 250 tokens, 4 samples of 32 tokens each; no prefix caching")
def samples(bench: Bench) -> Arms:
    """Four samples of a prompt hold its blocks once."""
    def arm(n: int) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            prompts = [words(rng, 250) for _ in range(bench.count(8))]
            jobs = [Job(prompt, greedy(32, n=n, temperature=1.0, seed=i)) for prompt in prompts for i in range(4 // n)]
            return _memory(serve(bench.engine(bench.llama(), prefix_caching=False, max_num_seqs=32), jobs))
        return run
    return {"4 requests": arm(1), "n = 4": arm(4)}


@measurement("Block sharing, beams of 4", "--kv", "4 prompts of 250 tokens, 32 tokens out; no prefix caching")
def beams(bench: Bench) -> Arms:
    """Beams fork at nearly every token: a contiguous cache copies the whole beam, a paged one shares its blocks."""
    def arm(**config: Any) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            jobs = [Job(words(rng, 250), greedy(32, beam_width=4)) for _ in range(bench.count(4))]
            return _memory(serve(bench.engine(bench.llama(), prefix_caching=False, max_num_seqs=16, **config), jobs))
        return run
    return {"contiguous oracle, copied": arm(kv="contiguous", reservation="oracle"), "paged, shared": arm()}


@measurement("Paged memory", "--kv, --reservation",
             "96 ShareGPT-like requests of at most 480 tokens, in 256 blocks of 16")
def layouts(bench: Bench) -> Arms:
    """How many sequences one pool holds, and what that does to throughput."""
    return layout_arms(bench, 0)


def layout_arms(bench: Bench, seed: int) -> Arms:
    """The same with lengths of another draw."""
    def arm(kv: str, reservation: str) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(seed)
            jobs = [Job(words(rng, p), greedy(o)) for p, o in chat_lengths(rng, bench.count(96))]
            engine = bench.engine(bench.llama(), kv=kv, reservation=reservation, num_blocks=256, max_model_len=512)
            served = serve(engine, jobs)
            return {"sequences held": served.held, "steps": served.steps, "tokens/s": served.tokens_per_s}
        return run
    contiguous = {f"contiguous {name}": arm("contiguous", name) for name in ("max", "pow2", "oracle")}
    return contiguous | {"paged": arm("paged", "max")}


@measurement("Sliding window", "sliding_window of the model", "8 requests of 64 tokens in and 512 out")
def sliding_window(bench: Bench) -> Arms:
    """Blocks behind the window are given back. Both models have the same weights."""
    def arm(window: int | None) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            jobs = [Job(words(rng, 64), greedy(512)) for _ in range(bench.count(8))]
            folder = bench.llama() if window is None else bench.llama(window=window)
            return _memory(serve(bench.engine(folder, prefix_caching=False), jobs))
        return run
    return {"all positions": arm(None), "window of 128": arm(128)}


@measurement("MHA, GQA, MQA", "num_key_value_heads of the model", "8 query heads of 64; 16 requests of 256 in, 64 out")
def kv_heads(bench: Bench) -> Arms:
    """Query heads that share a KV head."""
    def arm(heads: int) -> Arm:
        def run() -> dict[str, float]:
            engine = bench.engine(bench.llama(hidden=512, heads=8, kv_heads=heads))
            return {"KV bytes a token": kv_bytes_a_token(engine), "tokens/s": _even(bench, engine).tokens_per_s}
        return run
    return {"MHA (8 KV heads)": arm(8), "GQA (2)": arm(2), "MQA (1)": arm(1)}


def kv_bytes_a_token(engine: Engine) -> float:
    """Of the pool, scales included; exact."""
    return engine.pool.num_bytes / (engine.allocator.num_blocks * engine.allocator.block_size)


def _even(bench: Bench, engine: Engine) -> Served:
    rng = np.random.default_rng(0)
    return serve(engine, [Job(words(rng, 256), greedy(64)) for _ in range(bench.count(16))])


@measurement("Narrow KV", "--kv-cache-dtype", "5.6 M parameters in float32, 16 requests of 256 tokens in and 64 out")
def kv_dtypes(bench: Bench) -> Arms:
    """Bytes of a token's keys and values; int8 and fp8 with their scales."""
    def arm(dtype: str) -> Arm:
        def run() -> dict[str, float]:
            engine = bench.engine(bench.llama(), kv_dtype=dtype)
            return {"KV bytes a token": kv_bytes_a_token(engine), "tokens/s": _even(bench, engine).tokens_per_s}
        return run
    return {dtype: arm(dtype) for dtype in ("float32", "bfloat16", "int8", "fp8")}


@measurement("Int8 weights", "--weight-dtype", "5.6 M parameters in float32, 16 requests of 256 tokens in and 64 out")
def weight_dtypes(bench: Bench) -> Arms:
    """Bytes of the layers' matrices; embedding and lm_head stay as they are."""
    def arm(dtype: str) -> Arm:
        def run() -> dict[str, float]:
            engine = bench.engine(bench.llama(), weight_dtype=dtype)
            linears = [linear for layer in engine.runner.model.layers for linear in layer.linears()]
            size = sum(one.weight.nbytes + (0 if one.scale is None else one.scale.nbytes) for one in linears)
            return {"MB of matrices": size / 1e6, "tokens/s": _even(bench, engine).tokens_per_s}
        return run
    return {"float32": arm("auto"), "int8": arm("int8")}


ALL = (prefix_caching, samples, beams, layouts, sliding_window, kv_heads, kv_dtypes, weight_dtypes)

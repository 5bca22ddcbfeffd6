"""Mechanisms that decide who computes when, and in how many calls: batching, chunks, preemption, order, speculation."""

from __future__ import annotations

from typing import Any

import numpy as np

from pabench.probe import Ring, check_answer, draw_rings, preset
from reference_engine.benchmarks.measurement import Arm, Arms, measurement
from reference_engine.benchmarks.serving import Bench, Job, chat_lengths, greedy, serve, words


@measurement("Continuous batching", "--batching", "64 ShareGPT-like requests, 16 sequences at once, memory for all")
def batching(bench: Bench) -> Arms:
    """A static batch goes on with seats empty until its longest sequence ends."""
    def arm(kind: str) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            jobs = [Job(words(rng, p), greedy(o)) for p, o in chat_lengths(rng, bench.count(64))]
            served = serve(bench.engine(bench.llama(), batching=kind, max_num_seqs=16), jobs)
            return {"steps": served.steps, "sequences held": served.held, "tokens/s": served.tokens_per_s}
        return run
    return {"static": arm("static"), "continuous": arm("continuous")}


@measurement("Chunked prefill", "--no-enable-chunked-prefill",
             "8 sequences decode 192 tokens while 6 prompts of 900 come; chunks of at most 128")
def chunked_prefill(bench: Bench) -> Arms:
    """Whoever decodes waits for a prompt that is computed whole; a chunk stops it for less."""
    def arm(on: bool) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            decoding = [Job(words(rng, 16), greedy(192)) for _ in range(8)]
            coming = [Job(words(rng, 900), greedy(4), at_step=16 + 20 * i) for i in range(bench.count(6))]
            engine = bench.engine(bench.llama(), chunked_prefill=on, max_num_batched_tokens=128 if on else 1024,
                                  prefix_caching=False)
            served = serve(engine, decoding + coming)
            gaps = np.concatenate([served.gaps_s[request.id] for request in served.requests[:8]]) * 1e3
            return {"worst ITL of the 8, ms": float(gaps.max()), "p50 ITL, ms": float(np.median(gaps)),
                    "tokens/s": served.tokens_per_s}
        return run
    return {"off": arm(False), "on": arm(True)}


@measurement("Preemption", "--preemption-mode",
             "32 requests of 64 tokens in and 128 out in 96 blocks of 16; no prefix caching")
def preemption(bench: Bench) -> Arms:
    """What becomes of a sequence when blocks run out."""
    def arm(kind: str) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            jobs = [Job(words(rng, 64), greedy(128)) for _ in range(bench.count(32))]
            engine = bench.engine(bench.llama(), preemption=kind, num_blocks=96, max_num_seqs=32,
                                  prefix_caching=False)
            served, stats = serve(engine, jobs), engine.scheduler.stats
            return {"preemptions": stats.preemptions, "tokens recomputed": stats.recomputed_tokens,
                    "tokens/s": served.tokens_per_s}
        return run
    return {kind: arm(kind) for kind in ("recompute", "swap", "wait")}


@measurement("Priority", "--scheduling-policy",
             "60 requests of 64 tokens in and 64 out are queued, 8 at once; then 6 urgent ones come")
def priority(bench: Bench) -> Arms:
    """How long the urgent ones take, from arrival to the last token."""
    def arm(policy: str) -> Arm:
        def run() -> dict[str, float]:
            rng = np.random.default_rng(0)
            usual = [Job(words(rng, 64), greedy(64)) for _ in range(bench.count(60))]
            urgent = [Job(words(rng, 64), greedy(64), at_step=8 + i, priority=-1) for i in range(6)]
            served = serve(bench.engine(bench.llama(), policy=policy, max_num_seqs=8), usual + urgent)
            latency = [served.latency_s[request.id] for request in served.requests]
            return {"mean latency of urgent ones, s": float(np.mean(latency[-6:])),
                    "of the others, s": float(np.mean(latency[:-6])), "tokens/s": served.tokens_per_s}
        return run
    return {"fcfs": arm("fcfs"), "priority": arm("priority")}


@measurement("Layers compiled whole", "--enforce-eager",
             "rings of 32 tokens on the tiny probe, 128 tokens out: one sequence, then 8, then 24 at once (tokens/s)")
def whole_layers(bench: Bench) -> Arms:
    """A step of few tokens is mostly calls: one a layer in place of some fifteen."""
    def arm(eager: bool) -> Arm:
        def run() -> dict[str, float]:
            found: dict[str, float] = {}
            for count in (1, 8, 24):
                rings = draw_rings(preset("tiny"), np.random.default_rng(0), [32] * count)
                engine = bench.engine(bench.probe("tiny"), enforce_eager=eager, prefix_caching=False)
                params = greedy(128)
                served = serve(engine, [Job(ring.prompt, params) for ring in rings])
                _check(served.answers, rings, params.max_tokens)
                gaps = np.concatenate(list(served.gaps_s.values())) * 1e3
                found |= {f"median ITL of {count}, ms": float(np.median(gaps)), "tokens/s": served.tokens_per_s}
            return found
        return run
    return {"eager": arm(True), "whole": arm(False)}


@measurement("Speculation, n-gram", "--speculation ngram",
             "8 rings of 24 tokens on the tiny probe, which go round: 160 tokens out. Text that repeats itself")
def ngram(bench: Bench) -> Arms:
    """Guesses from the text itself."""
    return {"off": _speculating(bench, "tiny", 24), "ngram": _speculating(bench, "tiny", 24, speculation="ngram")}


@measurement("Speculation, draft model", "--speculation draft",
             "8 rings of 200 tokens, 64 out; the tiny probe guesses for the d256 probe, and is always right")
def draft(bench: Bench) -> Arms:
    """Guesses of another model. These two always agree, so this is the most that such a draft model can bring."""
    return {"off": _speculating(bench, "d256", 200, 64),
            "draft": _speculating(bench, "d256", 200, 64, speculation="draft", draft_model=bench.probe("tiny"))}


def _speculating(bench: Bench, probe: str, ring: int, length: int = 160, **config: Any) -> Arm:
    def run() -> dict[str, float]:
        rings = draw_rings(preset("tiny"), np.random.default_rng(0), [ring] * bench.count(8))
        engine = bench.engine(bench.probe(probe), prefix_caching=False, **config)
        served = serve(engine, [Job(ring.prompt, greedy(length)) for ring in rings])
        _check(served.answers, rings, length)
        stats = engine.stats
        accepted = 100 * stats.accepted_draft_tokens / stats.draft_tokens if stats.draft_tokens else 0.0
        return {"of drafts accepted, %": accepted, "tokens a step and sequence": length / served.steps,
                "tokens/s": served.tokens_per_s}
    return run


def _check(answers: list[list[int]], rings: list[Ring], length: int) -> None:
    for ids, ring in zip(answers, rings, strict=True):
        check = check_answer(ring, ids)
        if (check.verified, check.wrong) != (length, 0):
            raise RuntimeError(f"an answer is wrong: {check}")


ALL = (batching, chunked_prefill, preemption, priority, whole_layers, ngram, draft)

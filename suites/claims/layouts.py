"""A contiguous cache and a paged one in the same memory, measured: sequences held, waste, speed."""

from __future__ import annotations

import math

import numpy as np

from pabench.claims import Bench, Shown, claims_module
from reference_engine.benchmarks import sharing
from reference_engine.benchmarks.serving import chat_lengths, greedy, words
from reference_engine.benchmarks.timing import in_turns

engines = claims_module("engines")
_SEEDS = 3  # with a model, seconds each
_NEVER_WAITED = Shown("–", None, "the queue never waited: raise --scale")


def _layouts(bench: Bench) -> dict[str, dict[str, list[float]]]:
    """The layouts on several draws of lengths: how many sequences are held hangs on them, and on nothing else."""
    if "layouts" not in bench.memory:
        arms: dict[str, dict[str, list[float]]] = {}
        for more in range(_SEEDS):
            drawn = in_turns(sharing.layout_arms(engines.models(bench), bench.seed + more), 1)
            for arm, figures in drawn.items():
                for figure, values in figures.items():
                    arms.setdefault(arm, {}).setdefault(figure, []).extend(values)
        bench.memory["layouts"] = arms
    return bench.memory["layouts"]  # type: ignore[return-value]  # set above


def _sequences(bench: Bench, reservation: str) -> Shown:
    times = engines.ratio(_layouts(bench), "sequences held", f"contiguous {reservation}", "paged")
    return Shown(f"{times.text('.2f')}x", times.inside(2, 4),
                 f"mean over steps, the queue's end included; {sharing.layouts.setting}; {_SEEDS} seeds")


def sequences_max(bench: Bench) -> Shown:
    """Sequences held in one pool, over those of a cache that reserves the longest."""
    return _sequences(bench, "max")


def sequences_pow2(bench: Bench) -> Shown:
    """Over one that reserves the next power of two."""
    return _sequences(bench, "pow2")


def sequences_oracle(bench: Bench) -> Shown:
    """Over one that knows the length beforehand."""
    return _sequences(bench, "oracle")


def throughput(bench: Bench) -> Shown:
    """Tokens/s in one pool."""
    times = engines.ratio(_layouts(bench), "tokens/s", "contiguous max", "paged")
    return Shown(f"{times.text('.2f')}x", times.inside(2, 4),
                 f"over a cache that reserves the maximum, {_SEEDS} seeds. {engines.CPU}: a step of a CPU takes longer "
                 "with each sequence in it, so a larger batch buys little; on the KV probe over HTTP see "
                 "docs/benchmarks.md")


def _used(bench: Bench) -> dict[str, float]:
    """Share of the slots in use that hold tokens, mean over the steps that leave requests waiting."""
    if "used" in bench.memory:
        return bench.memory["used"]  # type: ignore[return-value]  # set below
    models, shares = engines.models(bench), {}
    for name, config in {"contiguous": {"kv": "contiguous", "reservation": "max"}, "paged": {"kv": "paged"}}.items():
        rng = np.random.default_rng(bench.seed)
        engine = models.engine(models.llama(), num_blocks=256, max_model_len=512, prefix_caching=False, **config)
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
    bench.memory["used"] = shares
    return shares


def utilisation(bench: Bench) -> Shown:
    """Both layouts inside what is said of them."""
    used = _used(bench)
    if any(map(math.isnan, used.values())):
        return _NEVER_WAITED
    return Shown(f"contiguous {used['contiguous']:.0%}, paged {used['paged']:.0%}",
                 0.2 <= used["contiguous"] <= 0.4 and 0.8 <= used["paged"] <= 0.96, sharing.layouts.setting)


def waste_below_4(bench: Bench) -> Shown:
    """The other figure that the notes give for paging."""
    waste = 1 - _used(bench)["paged"]
    if math.isnan(waste):
        return _NEVER_WAITED
    return Shown(f"{waste:.1%}", waste < 0.04,
                 f"{sharing.layouts.setting}: a last block that is half empty weighs more the shorter a sequence is; "
                 "at the paper's lengths see fig2-vllm")

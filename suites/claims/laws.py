"""Arithmetic from data sheets: closed formulas of the step law and of the copy law. Nothing is run."""

from __future__ import annotations

from pabench.claims import Bench, Shown
from reference_engine.simulation import StepLaw

_CONTEXT = 512
_BYTES_A_TOKEN, _COPIES_A_BLOCK = 819_200, 2 * 40  # OPT-13B: K and V of 40 layers are copied by themselves
_BLOCK_SIZES = (1, 4, 16, 32, 64, 256)


def _recompute_s() -> float:
    law = StepLaw()
    return law.base_s + _CONTEXT * law.per_prefill_token_s


def _swap_s(block_size: int) -> float:
    """Out and in again: 3.5 us a copy (a layer's K or V of a block), and 52 GB/s."""
    return 2 * (_COPIES_A_BLOCK * -(-_CONTEXT // block_size) * 3.5e-6 + _CONTEXT * _BYTES_A_TOKEN / 52e9)


def recompute_bound(bench: Bench) -> Shown:
    """Fig. 19a: recompute over swap, at every block size."""
    ratios = {size: _recompute_s() / _swap_s(size) for size in _BLOCK_SIZES}
    told = ", ".join(f"{size}: {ratio:.0%}" for size, ratio in ratios.items())
    kept = sum(ratio <= 0.2 for ratio in ratios.values())
    return Shown(f"{told} of swap latency", kept == len(ratios),
                 f"a context of {_CONTEXT} of OPT-13B on an A100: recompute {_recompute_s() * 1e3:.0f} ms, swap "
                 f"{_swap_s(1) * 1e3:.0f} ms in blocks of 1 to {_swap_s(256) * 1e3:.0f} ms in blocks of 256. By data "
                 f"sheets the bound holds at {kept} of {len(ratios)} block sizes")


def recompute_even(bench: Bench) -> Shown:
    """Fig. 19: comparable is within a factor of two of each other."""
    ratios = {size: _recompute_s() / _swap_s(size) for size in (16, 32, 64)}
    told = ", ".join(f"{size}: {ratio:.1f}x" for size, ratio in ratios.items())
    return Shown(f"recompute {told} of swap", all(0.5 <= ratio <= 2 for ratio in ratios.values()),
                 f"a context of {_CONTEXT}, as fig19-bound; comparable: within a factor of 2. A data sheet's 52 GB/s "
                 "make swapping the cheaper one")


def chunk_cost(bench: Bench) -> Shown:
    """Chunked prefill of prompts of 2K to 8K: every chunk reads the weights once more."""
    law = StepLaw()

    def seconds(prompt: int, chunk: int) -> float:
        return prompt // chunk * law.base_s + prompt * law.per_prefill_token_s

    cost = {chunk: [seconds(prompt, chunk) / seconds(prompt, prompt) - 1 for prompt in (2048, 4096, 8192)]
            for chunk in (512, 2048)}
    told = "; ".join(f"{chunk}: {' / '.join(f'{one:.1%}' for one in costs)}" for chunk, costs in cost.items())
    return Shown(told, all(0.12 <= one <= 0.19 for one in cost[512]) and max(cost[2048]) < 0.05,
                 "prompts of 2048 / 4096 / 8192 by the step law of OPT-13B; theirs was measured on other models; about "
                 "nothing: below 5 %")

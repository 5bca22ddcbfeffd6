"""FlashAttention 2's call with a block table. Written from its documentation; it needs an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pabench.conformance.kernel.adapter import Batch
from pabench.conformance.kernel.cases import AttendCase, Case

_BLOCK_MULTIPLE = 256  # of tokens a block


class FlashAttention:
    """flash_attn_varlen_func over the canonical layout, which is its own."""

    capabilities = frozenset({"lse"})
    device = "cuda"

    def __init__(self, call: Callable[..., Any], version: str) -> None:
        self._call, self._version = call, version

    def describe(self) -> str:
        """What really runs."""
        return f"flash_attn {self._version} on {torch.cuda.get_device_name()}, varlen with a block table"

    def unsupported(self, case: Case) -> list[str]:
        """What its documentation does not promise."""
        if not isinstance(case, AttendCase):
            return ["flash_attn_varlen_func is attention alone"]
        form = case.form
        refused = {
            f"blocks of {form.block_size} (only multiples of {_BLOCK_MULTIPLE})": form.block_size % _BLOCK_MULTIPLE,
            f"queries in {case.dtype} over a cache in {form.storage}":
                case.dtype != form.storage or case.dtype == "float32",
            f"head dims {form.head_dim} and {form.value_dim}":
                form.head_dim != form.value_dim or form.head_dim % 8 or form.head_dim > 256,
            "a soft cap together with ALiBi": case.soft_cap is not None and case.alibi,
            # Its causal bias is slope * key position: no weight is another for it, and the LSE is, by the row's own.
            "ALiBi where the LSE is asked for": case.alibi and case.with_lse,
        }
        return [f"flash_attn does not take {what}" for what, asked in refused.items() if asked]

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One call for the whole batch."""
        contexts, starts = batch.context_lens.int(), batch.query_start_loc.int()
        ends = torch.nn.functional.pad(contexts.cumsum(0), (1, 0)).int()
        result = self._call(
            batch.query, batch.cache.key, batch.cache.value, starts, ends, int(starts.diff().max()),
            int(contexts.max()), softmax_scale=batch.scale, causal=True,
            window_size=(-1, -1) if batch.window is None else (batch.window - 1, 0), softcap=batch.soft_cap or 0.0,
            alibi_slopes=batch.alibi_slopes, return_attn_probs=batch.with_lse, block_table=batch.block_tables.int(),
        )
        return (result[0], lse_by_row(result[1])) if batch.with_lse else (result, None)


def lse_by_row(lse: torch.Tensor) -> torch.Tensor:
    """[num_tokens, num_q_heads] from [num_q_heads, num_tokens], in which a row that sees nothing has +inf."""
    return lse.masked_fill(lse == torch.inf, -torch.inf).T.contiguous()


def paged() -> FlashAttention:
    """The adapter. Raises RuntimeError without a GPU or the package."""
    if not torch.cuda.is_available():
        raise RuntimeError("flash_attn runs on an NVIDIA GPU, and torch sees none")
    try:
        import flash_attn
    except ImportError as error:
        raise RuntimeError(f"flash_attn is not installed ({error}): pip install flash-attn") from error
    return FlashAttention(flash_attn.flash_attn_varlen_func, flash_attn.__version__)

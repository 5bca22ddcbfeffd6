"""torch's flex_attention: a block mask over the slots of the whole cache, which says which of them are a row's own.

Without a compiler for the CPU, or for a GPU's, it runs eagerly: it then makes the scores of all rows with all slots.
"""

from __future__ import annotations

import warnings

import torch
from torch.nn.attention import flex_attention as flex

from pabench.conformance.kernel.adapter import Batch
from pabench.conformance.kernel.cases import SCALED, AttendCase, Case


class FlexAttention:
    """Eager flex_attention. It multiplies what it has masked with values, so it gets a copy without those not seen."""

    capabilities = frozenset({"lse"})
    device = "cpu"

    def describe(self) -> str:
        """What really runs."""
        return f"torch {torch.__version__} flex_attention, eager, over a copy of the cache with unseen values zeroed"

    def unsupported(self, case: Case) -> list[str]:
        """What it is not handed."""
        if not isinstance(case, AttendCase):
            return ["flex_attention is attention alone"]
        form, reasons = case.form, []
        if form.layout == "far":
            reasons.append("flex_attention scores all slots of the cache, which are too many")
        if form.storage in SCALED:
            reasons.append(f"flex_attention takes no {form.storage} with scales")
        elif form.storage != case.dtype:
            reasons.append("flex_attention takes one dtype for queries, keys and values")
        return reasons

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One call for the whole batch: slots are key positions, and a mask gives each row its own."""
        positions = _positions(batch)  # [num_seqs, slots]
        rows = torch.arange(len(batch.context_lens)).repeat_interleave(batch.query_start_loc.diff().long())
        own = _own_positions(batch, rows)
        window = batch.window or own.new_tensor(2**31)

        def mask(_b: torch.Tensor, _h: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
            at = positions[rows[row], slot]
            return (at >= 0) & (at <= own[row]) & (at > own[row] - window)

        def score(
            x: torch.Tensor, _b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, slot: torch.Tensor
        ) -> torch.Tensor:
            if batch.soft_cap is not None:
                x = batch.soft_cap * torch.tanh(x / batch.soft_cap)
            if batch.alibi_slopes is not None:
                x = x + batch.alibi_slopes[h] * (positions[rows[row], slot] - own[row])
            return x

        key, value = (x.flatten(0, 1).transpose(0, 1)[None] for x in (batch.cache.key, batch.cache.value))
        num_rows, slots = len(rows), key.shape[2]
        size = batch.cache.key.shape[1]
        block_mask = flex.create_block_mask(mask, 1, None, num_rows, slots, device="cpu", BLOCK_SIZE=size)
        seen = mask(None, None, torch.arange(num_rows)[:, None], torch.arange(slots)[None]).any(0)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
            out, more = flex.flex_attention(
                batch.query.transpose(0, 1)[None], key, value.where(seen[:, None], 0), score, block_mask,
                scale=batch.scale, enable_gqa=True, return_aux=flex.AuxRequest(lse=True))
        return out[0].transpose(0, 1), more.lse[0].T if batch.with_lse else None


def _positions(batch: Batch) -> torch.Tensor:
    """[num_seqs, slots] the position of each sequence that stands in a slot, or -1."""
    num_blocks, size = batch.cache.key.shape[:2]
    positions = torch.full((len(batch.context_lens), num_blocks * size), -1)
    for seq, context in enumerate(batch.context_lens.tolist()):
        at = torch.arange(context)
        blocks = batch.block_tables[seq].long()[at // size]
        live = (blocks >= 0) & (blocks < num_blocks)  # entries behind a window may name nothing
        positions[seq, (blocks * size + at % size)[live]] = at[live]
    return positions


def _own_positions(batch: Batch, rows: torch.Tensor) -> torch.Tensor:
    """[num_tokens] the position of each query row."""
    behind = batch.query_start_loc.long()[1:][rows] - torch.arange(len(rows))
    return batch.context_lens.long()[rows] - behind


def eager() -> FlexAttention:
    """The adapter."""
    return FlexAttention()



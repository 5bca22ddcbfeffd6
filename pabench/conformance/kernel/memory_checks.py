"""What tests ask of cache writes, block copies and merges, a function each: (kernel, case) -> None, or CaseFailed.

    written_exactly       the slots hold the new keys and values, as exactly as the storage can
    nothing_else_written  all other bytes of the caches' memory are as they were
    copied_exactly        the targets hold what the sources held, bit for bit, and all else is as it was
    merges_as_dense       partial results make the whole
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pabench.conformance.failure import fail
from pabench.conformance.kernel.adapter import Cache
from pabench.conformance.kernel.cases import CacheForm, CopyCase, MergeCase, WriteCase
from pabench.conformance.kernel.layouts import (
    PlacedCache,
    as_bytes,
    num_blocks_in,
    place_cache,
    same_bits,
    torch_dtype,
)
from pabench.conformance.kernel.under_test import KernelUnderTest

_LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


def written_exactly(kernel: KernelUnderTest, case: WriteCase) -> None:
    """Each named slot holds its token's key and value: exact, or within half a step of a scaled storage."""
    new, cache, _, _, slots = _write(kernel, case)
    live = slots >= 0
    for name, part, scale, rows in (("key", cache.key, cache.key_scale, new[0]),
                                    ("value", cache.value, cache.value_scale, new[1])):
        where = _slot_indices(case.form, slots[live])
        stored = as_bytes(part)[where].cpu().view(part.dtype)
        given = rows.cpu()[live.cpu()]
        if scale is None:
            wrong = ~same_bits(stored, given.to(part.dtype))
            allowed = torch.zeros(given.shape, dtype=torch.float64)
            real = stored.double()
        else:
            scale = (scale[where] if scale.dim() == 3 else scale.expand(given.shape[:2])).cpu().double()[..., None]
            real, allowed = stored.double() * scale, _allowed(case.form, given.double(), scale)
            wrong = ~((real - given.double()).abs() <= allowed)
        if wrong.any():
            token, head, dim = (int(x) for x in wrong.nonzero()[0])
            slot = case.slots[[i for i, at in enumerate(case.slots) if at >= 0][token]]
            within = f", within {float(allowed[token, head, dim]):.3g}" if scale is not None else ""
            fail(f"{name} of slot {slot}, head {head}, element {dim}: {float(given[token, head, dim]):.6g}{within}",
                 f"{float(real[token, head, dim]):.6g}; {int(wrong.sum())} of {wrong.numel()} elements are wrong",
                 hint="a slot is block * block_size + offset; its strides are the cache's own")


def nothing_else_written(kernel: KernelUnderTest, case: WriteCase) -> None:
    """No byte beside those of the named slots changes: not block 0, not the last slot, not what lies between rows."""
    _, _, placed, before, slots = _write(kernel, case)
    where = _slot_indices(case.form, slots[slots >= 0])
    _unchanged(placed, before, where)


def copied_exactly(kernel: KernelUnderTest, case: CopyCase) -> None:
    """Target blocks hold what the sources held before the call; nothing else changes."""
    rng = torch.Generator().manual_seed(case.seed)
    source = _full_cache(case.form, case.num_blocks, kernel.device, rng)
    target = source if case.target_blocks is None else _full_cache(case.form, case.target_blocks, kernel.device, rng)
    first = num_blocks_in(case.form, case.num_blocks) - case.num_blocks
    given = _given_scales(case.form, rng, kernel.device)
    pairs = torch.tensor(case.pairs, dtype=torch.int64).reshape(-1, 2).to(kernel.device) + first
    before = [part.base.clone() for _, part in target.parts()] if first == 0 else []
    wanted = [as_bytes(part.view)[pairs[:, 0]].clone() for _, part in source.parts()]
    kernel.copy_blocks(_cache(source, given), _cache(target, given), pairs)
    for (name, part), want in zip(target.parts(), wanted, strict=True):
        got = as_bytes(part.view)[pairs[:, 1]]
        wrong = ~same_bits(got, want).flatten(1).all(1)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            source_block, block = case.pairs[at]
            fail(f"cache.{name} of block {block} as block {source_block} was before the call",
                 f"it is not; {int(wrong.sum())} of {len(wrong)} blocks are wrong",
                 hint="a source may be another pair's target: read all before writing")
    if first == 0:
        _unchanged(target, before, (pairs[:, 1],))


def merges_as_dense(kernel: KernelUnderTest, case: MergeCase) -> None:
    """Each part counts by exp(its LSE); what has seen nothing counts nothing."""
    rng = torch.Generator().manual_seed(case.seed)
    dtype = torch_dtype(case.dtype)
    outs = torch.randn(case.parts, case.rows, case.heads, case.dim, generator=rng).to(dtype)
    lses = torch.randn(case.parts, case.rows, case.heads, generator=rng) * case.spread
    for part, row in case.empty:
        outs[part, row], lses[part, row] = 0, -torch.inf
    given = [x.to(kernel.device) for x in (outs, lses)]
    if case.views:  # the same numbers with the last dim outermost in a part
        given = [x.transpose(1, -1).contiguous().transpose(1, -1) for x in given]
    out, lse = (x.cpu().double() for x in kernel.merge(*given))
    exact_lse = lses.double().logsumexp(0)
    weights = (lses.double() - exact_lse).exp().nan_to_num(0.0)
    exact = (weights[..., None] * outs.double()).sum(0)
    # One rounding of the result, of each weight in float32, and of the LSE at its size.
    eps32 = torch.finfo(torch.float32).eps
    size = outs.double().abs().amax(0).amax(-1)
    allowed = size * (torch.finfo(dtype).eps + 4 * eps32 * (1 + lses.nan_to_num(0, 0, 0).abs().amax(0).double()))
    off = (out - exact).abs().nan_to_num(torch.inf).amax(-1)
    if not (off <= allowed).all():
        row, head = divmod(int((off - allowed).argmax()), case.heads)
        fail(f"row {row}, head {head}: {float(exact[row, head, 0]):.6g}, …, within {float(allowed[row, head]):.2g}",
             f"{float(out[row, head, 0]):.6g}, …; off by {float(off[row, head]):.3g}",
             hint="weight a part by exp(its LSE - the largest), and divide by the sum of the weights")
    near = (lse - exact_lse).abs() <= 4 * eps32 * (1 + exact_lse.abs())
    if not (near | (lse == exact_lse)).all():
        row, head = (int(x) for x in (~(near | (lse == exact_lse))).nonzero()[0])
        fail(f"row {row}, head {head}: LSE {float(exact_lse[row, head]):.6g}", f"{float(lse[row, head]):.6g}")


# What they share ------------------------------------------------------------------------------------------------------


def _write(
    kernel: KernelUnderTest, case: WriteCase
) -> tuple[Sequence[torch.Tensor], Cache, PlacedCache, list[torch.Tensor], torch.Tensor]:
    """Write. New keys and values, the cache, its memory and what was in that (not of a far one), slots as given."""
    rng = torch.Generator().manual_seed(case.seed)
    num_blocks = num_blocks_in(case.form, case.num_blocks)
    first = (num_blocks - case.num_blocks) * case.form.block_size
    placed = place_cache(case.form, num_blocks, kernel.device, "nan")
    given = _given_scales(case.form, rng, kernel.device)
    key, value = (_numbers(case, dim, rng) for dim in (case.form.head_dim, case.form.value_dim))
    if case.arguments == "views":
        both = torch.cat([torch.full_like(key, 7.0), key, value], -1).to(kernel.device)
        key, value = both[..., case.form.head_dim : -case.form.value_dim], both[..., -case.form.value_dim :]
    else:
        key, value = key.to(kernel.device), value.to(kernel.device)
    integer = torch.int32 if case.arguments == "int32" else torch.int64
    slots = torch.tensor([slot + first if slot >= 0 else slot for slot in case.slots], dtype=integer)
    before = [part.base.clone() for _, part in placed.parts()] if first == 0 else []
    cache = _cache(placed, given)
    kernel.write(key, value, cache, slots.to(kernel.device))
    return (key, value), cache, placed, before, slots.long().to(kernel.device)


def _numbers(case: WriteCase, dim: int, rng: torch.Generator) -> torch.Tensor:
    """New keys or values [num_tokens, num_kv_heads, dim]."""
    x = torch.randn(len(case.slots), case.form.num_kv_heads, dim, generator=rng)
    if case.numbers == "positive":
        x = 7 + x.abs()
    elif case.numbers == "wide":
        x = x * torch.exp2(torch.randint(-8, 9, x.shape[:2], generator=rng).float())[..., None]
    elif case.numbers == "zeros":
        x = torch.zeros_like(x)
    return x.to(torch_dtype(case.dtype))


def _given_scales(form: CacheForm, rng: torch.Generator, device: str) -> list[torch.Tensor | None]:
    """Scales of keys and values that hold for the whole cache."""
    if form.scales not in ("tensor", "head"):
        return [None, None]
    sizes = (form.num_kv_heads,) if form.scales == "head" else ()
    unit = 4 / _LARGEST[form.storage]
    return [(torch.exp2(torch.rand(sizes, generator=rng) * 2 - 1) * unit).to(device) for _ in range(2)]


def _cache(placed: PlacedCache, given: Sequence[torch.Tensor | None]) -> Cache:
    own = [None if part is None else part.view for part in (placed.key_scale, placed.value_scale)]
    return Cache(placed.key.view, placed.value.view, *(b if a is None else a for a, b in zip(own, given, strict=True)))


def _slot_indices(form: CacheForm, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return slots // form.block_size, slots % form.block_size


def _allowed(form: CacheForm, given: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What stored * scale may be off by: half a step of the range that is really there, and what is past a given one.

    Of a scale that the write chooses itself, the range is that of the token's own head: its largest magnitude.
    """
    largest = _LARGEST[form.storage]
    step = scale if form.scales != "slot" else given.abs().amax(-1, keepdim=True) / largest
    # Half a step of int8; half an ulp (2^-4 of the value), or half a subnormal (2^-10), of fp8. And float32's rounding.
    half = step / 2 if form.storage == "int8" else torch.maximum(given.abs() / 16, step * 2.0**-10)
    past = (given.abs() - step * largest).clamp_min(0)
    return (half + past) * (1 + 1e-4) + given.abs() * 1e-6 + 1e-36


def _full_cache(form: CacheForm, num_blocks: int, device: str, rng: torch.Generator) -> PlacedCache:
    """A cache whose every live byte is random, NaN patterns among them; between its rows lies NaN."""
    placed = place_cache(form, num_blocks_in(form, num_blocks), device, "nan")
    for _, part in placed.parts():
        last = part.view[-num_blocks:]
        raw = torch.randint(0, 256, (*last.shape, last.element_size()), generator=rng, dtype=torch.uint8)
        as_bytes(last).copy_(as_bytes(raw.view(last.dtype)[..., 0]).to(device))
    return placed


def _unchanged(placed: PlacedCache, before: Sequence[torch.Tensor], where: tuple[torch.Tensor, ...]) -> None:
    """Raise CaseFailed when the memory of a cache outside view[where] is not as it was `before`, a tensor a part.

    Keys and values may lie in the same memory.
    """
    parts = placed.parts()
    for (name, part), then in zip(parts, before, strict=True):
        changed = ~same_bits(part.base, then)
        for _, other in parts:
            if other.base.data_ptr() == part.base.data_ptr():
                changed &= other.untouched_mask(*where)
        if changed.any():
            slots = changed.as_strided(part.view.shape, part.view.stride(), part.view.storage_offset()).nonzero()
            at = f"block {int(slots[0, 0])}, offset {int(slots[0, 1])}" if len(slots) else "room between the rows"
            fail(f"the memory of cache.{name} as it was, but for what is named",
                 f"{int(changed.sum())} elements have changed, the first in {at}",
                 hint="strides are the cache's own; as an index, a negative slot is the last one")

"""The attention kernel: one work item a turn, its query rows against its range of the paged cache.

A work item (`schedule.ITEM`) is a few adjacent query rows of a batch, and a range of positions of one block table.
All query heads of a KV head are served together: lane m of the tile is query row m // GROUP, head m % GROUP of the
group, so that each key and value is read once for all of them. A decode is one row over a fixed number of positions
(split-KV), a prefill many rows over all that they see; the kernel is the same, compiled for tiles of another size.

Tiles of TILE positions have nothing to do with the size of a block. Where every row sees all of a tile it is read and
scored without a mask; edges (the last positions, the diagonal, the window's begin) take the masked loop. What is
masked is not read at all: a weight of zero times a NaN would still be NaN.

Block numbers, slots, rows and heads become 64 bits wide before they are multiplied with a stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Where the scale of a stored key or value comes from.
NO_SCALE, SCALE_A_HEAD, SCALE_A_SLOT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def e4m3_to_half(bits):
    """float16 of uint8 `bits` that hold float8_e4m3fn, exactly, on targets without that type (NaN stays NaN).

    Exponent and mantissa are moved to where float16 has them; the biases differ by 8.
    """
    magnitude = bits & 0x7F
    half = (magnitude.to(tl.uint16) << 7) | ((bits & 0x80).to(tl.uint16) << 8)
    return tl.where(magnitude == 0x7F, float("nan"), half.to(tl.float16, bitcast=True) * 256.0)


@triton.jit
def _tanh(x):
    """tanh in float32 to a few ulp: a series near 0, where the exponentials would cancel."""
    y = x * x
    series = x * (1 + y * (-0.3333333333 + y * (0.1333333333 + y * (-0.0539682540 + y * 0.0218694885))))
    e = tl.exp2(tl.abs(x) * (-2 * LOG2_E))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -far, far))


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    """a b in float32, b taken in a's dtype.

    WIDEN: both in float32. Triton's interpreter takes a bfloat16 for the integer that it keeps it in.
    """
    if WIDEN:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        product = tl.dot(a, b.to(a.dtype), input_precision="ieee")
    return product


@triton.jit
def _load(pointers, mask, MASKED: tl.constexpr, other):
    return tl.load(pointers, mask=mask, other=other) if MASKED else tl.load(pointers)


@triton.jit
def _load_rows(
    base, rows, lanes, seen, DIM: tl.constexpr, PAD: tl.constexpr, MASKED: tl.constexpr, FP8_BITS: tl.constexpr
):
    """[TILE, PAD] stored values at element offsets rows [TILE], 0 where not seen and in the lanes from DIM on."""
    pointers = base + rows[:, None] + lanes[None, :]
    if MASKED:
        x = tl.load(pointers, mask=seen[:, None] & (lanes < DIM)[None, :], other=0.0)
    elif DIM == PAD:
        x = tl.load(pointers)
    else:
        x = tl.load(pointers, mask=(lanes < DIM)[None, :], other=0.0)
    return e4m3_to_half(x) if FP8_BITS else x


@triton.jit
def _attend_tile(
    start, begin, end, q, position, slopes, top, total, acc,
    key, value, key_scale, value_scale, table, score_scale, soft_cap, window,
    stride_kb, stride_ks, stride_vb, stride_vs, stride_ksb, stride_kss, stride_vsb, stride_vss,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ALIBI: tl.constexpr,
    SCALES: tl.constexpr, FP8_BITS: tl.constexpr, WIDEN: tl.constexpr,
):
    """Running maximum, sum and output, (top [M], total [M], acc [M, VALUE_PAD]) in float32, after one more tile."""
    offsets = start + tl.arange(0, TILE)
    seen = (offsets >= begin) & (offsets < end)
    if BLOCK_SIZE % TILE == 0:  # the tile lies in one block: one look-up, adjacent slots
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        slot = (start % BLOCK_SIZE + tl.arange(0, TILE)).to(tl.int64)
    else:
        block = _load(table + offsets // BLOCK_SIZE, seen, MASKED, 0).to(tl.int64)
        slot = (offsets % BLOCK_SIZE).to(tl.int64)
    k = _load_rows(key, block * stride_kb + slot * stride_ks, tl.arange(0, HEAD_PAD), seen, HEAD_DIM, HEAD_PAD, MASKED,
                   FP8_BITS)
    scores = _dot(q, tl.trans(k), WIDEN) * score_scale  # [M, TILE]
    if SCALES == SCALE_A_SLOT:
        scores *= _load(key_scale + block * stride_ksb + slot * stride_kss, seen, MASKED, 0.0)[None, :]
    if HAS_CAP:
        scores = _tanh(scores) * (soft_cap * LOG2_E)
    if HAS_ALIBI:
        scores += slopes[:, None] * (offsets[None, :] - position[:, None]).to(tl.float32)
    if MASKED:
        visible = seen[None, :] & (offsets[None, :] <= position[:, None])
        if HAS_WINDOW:
            visible &= offsets[None, :] > position[:, None] - window
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet: -inf - -inf would be NaN.
    finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - finite_top[:, None])
    shrink = tl.exp2(top - finite_top)
    total = total * shrink + tl.sum(weights, 1)
    v = _load_rows(value, block * stride_vb + slot * stride_vs, tl.arange(0, VALUE_PAD), seen, VALUE_DIM, VALUE_PAD,
                   MASKED, FP8_BITS)
    if SCALES == SCALE_A_SLOT:
        # Weights times scales may be too small for 16 bits: the tile's largest scale is taken out and put back.
        v_scale = _load(value_scale + block * stride_vsb + slot * stride_vss, seen, MASKED, 0.0)
        largest = tl.maximum(tl.max(v_scale, 0), 1e-37)
        weights *= (v_scale / largest)[None, :]
        acc = acc * shrink[:, None] + _dot(weights.to(q.dtype), v, WIDEN) * largest
    else:
        acc = acc * shrink[:, None] + _dot(weights.to(q.dtype), v, WIDEN)
    return new_top, total, acc


# The tables' width follows the batch's longest context: specialised, it would have variants compiled while serving.
@triton.jit(do_not_specialize=["stride_table"])
def attend_kernel(
    query, key, value, key_scale, value_scale, alibi_slopes, tables, positions, items, num_items,
    out, lse, part_out, part_lse, scale, soft_cap, window,
    stride_qt, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_ksb, stride_kss, stride_ksh, stride_vsb, stride_vss, stride_vsh, stride_table, stride_ot, stride_oh,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr, SCALES: tl.constexpr, FP8_BITS: tl.constexpr, WITH_LSE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """out [num_tokens, num_q_heads, VALUE_DIM] and lse [num_tokens, num_q_heads] of the rows of `items`.

    query        [num_tokens, num_q_heads, HEAD_DIM], last dim contiguous
    key, value   [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM or VALUE_DIM], last dim contiguous
    *_scale      float32, read with strides of a block, a slot and a head
    tables       [num_seqs, stride_table] int32;  positions [num_tokens] int32
    items        [num_items, 8] int32, see `schedule.ITEM`
    part_out     [num_parts, num_q_heads, VALUE_DIM] float32, part_lse [num_parts, num_q_heads] float32: rows of items
                 that are one of several over the same rows; `merge_kernel` makes one of them

    Any number of programs: each takes every num_programs-th pair of item and KV head.
    """
    m = tl.arange(0, BLOCK_M)
    row, group_head = m // GROUP, m % GROUP
    head_lanes, value_lanes = tl.arange(0, HEAD_PAD), tl.arange(0, VALUE_PAD)
    for work in range(tl.program_id(0), tl.load(num_items) * NUM_KV_HEADS, tl.num_programs(0)):
        head = work % NUM_KV_HEADS
        wide_head = head.to(tl.int64)
        item = items + work // NUM_KV_HEADS * 8
        first_row, num_rows, seq = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        begin, end, full_begin, full_end = tl.load(item + 3), tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)
        first_part = tl.load(item + 7)
        live = row < num_rows
        token = (first_row + row).to(tl.int64)
        q_head = wide_head * GROUP + group_head
        position = tl.load(positions + token, mask=live, other=0)
        q = tl.load(query + token[:, None] * stride_qt + q_head[:, None] * stride_qh + head_lanes[None, :],
                    mask=live[:, None] & (head_lanes < HEAD_DIM)[None, :], other=0.0)
        score_scale = scale / soft_cap if HAS_CAP else scale * LOG2_E
        if SCALES == SCALE_A_HEAD:
            score_scale *= tl.load(key_scale + wide_head * stride_ksh)
        slopes = tl.load(alibi_slopes + q_head, mask=live, other=0.0) * LOG2_E if HAS_ALIBI else position
        table = tables + seq.to(tl.int64) * stride_table
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, VALUE_PAD], tl.float32)

        first_edge = begin // TILE * TILE
        leading = (full_begin - first_edge) // TILE  # edge tiles before the full ones
        for EDGES in tl.static_range(2):
            turns = leading + tl.cdiv(end - full_end, TILE) if EDGES else (full_end - full_begin) // TILE
            for turn in range(turns):
                if EDGES:
                    start = tl.where(turn < leading, first_edge + turn * TILE, full_end + (turn - leading) * TILE)
                else:
                    start = full_begin + turn * TILE
                top, total, acc = _attend_tile(
                    start, begin, end, q, position, slopes, top, total, acc,
                    key + wide_head * stride_kh, value + wide_head * stride_vh, key_scale + wide_head * stride_ksh,
                    value_scale + wide_head * stride_vsh, table, score_scale, soft_cap, window,
                    stride_kb, stride_ks, stride_vb, stride_vs, stride_ksb, stride_kss, stride_vsb, stride_vss,
                    BLOCK_SIZE, HEAD_DIM, VALUE_DIM, HEAD_PAD, VALUE_PAD, TILE, EDGES == 1,
                    HAS_WINDOW, HAS_CAP, HAS_ALIBI, SCALES, FP8_BITS, WIDEN)

        nothing = total == 0
        total = tl.where(nothing, 1.0, total)
        result = acc / total[:, None]
        if SCALES == SCALE_A_HEAD:
            result *= tl.load(value_scale + wide_head * stride_vsh)
        row_lse = tl.where(nothing, float("-inf"), (top + tl.log2(total)) * LN_2)
        stored = live[:, None] & (value_lanes < VALUE_DIM)[None, :]
        if first_part < 0:
            tl.store(out + token[:, None] * stride_ot + q_head[:, None] * stride_oh + value_lanes[None, :],
                     result.to(out.dtype.element_ty), mask=stored)
            if WITH_LSE:
                tl.store(lse + token * (NUM_KV_HEADS * GROUP) + q_head, row_lse, mask=live)
        else:
            part = (first_part + row).to(tl.int64) * (NUM_KV_HEADS * GROUP) + q_head
            tl.store(part_out + part[:, None] * VALUE_DIM + value_lanes[None, :], result, mask=stored)
            tl.store(part_lse + part, row_lse, mask=live)


@triton.jit
def merge_kernel(
    part_out, part_lse, part_starts, part_rows, out, lse, stride_ot, stride_oh,
    NUM_Q_HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_PAD: tl.constexpr, PARTS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """out and lse of each row that has parts: program (row, head) reads parts part_rows[part_starts[row] : [row + 1]].

    Parts stand as attend_kernel leaves them, each normalised by its own sum: they are weighted by exp(lse).
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = tl.load(part_starts + token), tl.load(part_starts + token + 1)
    lanes = tl.arange(0, VALUE_PAD)
    top, total = float("-inf"), 0.0
    acc = tl.zeros([VALUE_PAD], tl.float32)
    for first in range(begin, end, PARTS):
        i = first + tl.arange(0, PARTS)
        part = tl.load(part_rows + i, mask=i < end, other=0).to(tl.int64) * NUM_Q_HEADS + head
        part_lses = tl.load(part_lse + part, mask=i < end, other=float("-inf"))
        values = tl.load(part_out + part[:, None] * VALUE_DIM + lanes[None, :],
                         mask=(i < end)[:, None] & (lanes < VALUE_DIM)[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(part_lses, 0))
        finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(part_lses - finite_top)
        shrink = tl.exp(top - finite_top)
        acc = acc * shrink + tl.sum(weights[:, None] * values, 0)
        total = total * shrink + tl.sum(weights, 0)
        top = new_top
    if end > begin:
        nothing = total == 0
        total = tl.where(nothing, 1.0, total)
        tl.store(out + token * stride_ot + head * stride_oh + lanes, (acc / total).to(out.dtype.element_ty),
                 mask=lanes < VALUE_DIM)
        if WITH_LSE:
            tl.store(lse + token * NUM_Q_HEADS + head, tl.where(nothing, float("-inf"), top + tl.log(total)))

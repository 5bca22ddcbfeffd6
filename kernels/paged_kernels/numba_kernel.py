"""The compiled loops of paged decode attention on a CPU: keys and values are read where they lie, each once.

One item is a sequence and a KV head: its query rows (one, or a few that verify drafts) of all query heads of the KV
head run together, so that a key or a value is loaded and widened once for all of them. Softmax takes two passes over
a buffer of scores. Storage dtypes that numba does not know come as integers of their bits:

    float32, float64  as they are          bfloat16  uint16        float16  int16
    int8              int8, with scales    fp8 e4m3  uint8, with scales

Compiled once for each storage dtype, on first use, and kept on disk.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

_TILE = 16  # positions that are widened at a time: a tile stays in the first-level cache
_AHEAD = 6 * _TILE  # how far in front memory is asked for, positions: measured, 16 and 192 are slower

# Sums may be reordered and contracted, as vector instructions need. Infinities and NaN keep their meaning.
_REORDER = {"reassoc", "contract", "arcp", "nsz"}

# Weights below e^-64 of the largest count as none: far under what float32 keeps of a sum (2^-24 of it). Smaller ones
# make products with a value subnormal, which took nearly half of a decode over 1000 positions of few distinct keys.
_LEAST = np.float32(-64.0)

_FP8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def _widen(x):
    """Real value of a stored element."""
    raise NotImplementedError("compiled code only")


@overload(_widen)
def _widen_impl(x):
    if isinstance(x, types.Float):
        return lambda x: x
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: np.uint32(np.uint32(x) << 16).view(np.float32)
    if x == types.int16:
        return _widen_half
    if x == types.uint8:
        return lambda x: _FP8[x]
    return lambda x: np.float32(x)


def _widen_half(x):
    bits = np.uint32(np.uint16(x))
    # Exponent and mantissa in their float32 places: the exponent's bias is then too small by 112, for subnormals too.
    wide = np.uint32((bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    special = 0x7F800000 if bits & 0x7C00 == 0x7C00 else 0  # infinity and NaN
    return np.uint32(np.float32(wide).view(np.uint32) | special | ((bits & 0x8000) << 16)).view(np.float32)


def _exp(x):
    """e^x for x <= 0 or NaN; in float32 0 below e^_LEAST."""
    raise NotImplementedError("compiled code only")


@overload(_exp, jit_options={"fastmath": False})  # reordered, the two parts of ln 2 would become one
def _exp_impl(x):
    return _exp_float32 if x == types.float32 else lambda x: math.exp(x)


def _exp_float32(x):
    # Within 2 ulp, in plain arithmetic: a loop over it becomes vector instructions, which a call of expf does not.
    bounded = x if x > _LEAST else _LEAST  # NaN too: what has no integer is not turned into one
    n = np.floor(bounded * np.float32(1.4426950408889634) + np.float32(0.5))
    r = bounded - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # n ln 2 in two parts, the first exact
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.int32((np.int32(n) + 127) << 23).view(np.float32)  # 2^n
    return x if x != x else (np.float32(0.0) if x < _LEAST else p * power)


@intrinsic
def _prefetch_line(typing_context, address):
    """Ask for the cache line at an address."""
    def build(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        builder.call(function, [builder.inttoptr(args[0], byte), flag(0), flag(2), flag(1)])  # to read, second level
        return context.get_dummy_value()
    return types.void(types.uintp), build


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _prefetch(stored, first_head, last_head, slots, at, width):
    """Before the tile at `at` is worked on: ask for the tile _AHEAD of it. Hardware does not follow a block table."""
    row_bytes = stored.shape[2] * stored.itemsize
    start = min(at + _AHEAD, width) if at else 0
    for t in range(start, min(at + _AHEAD + _TILE, width)):
        address = stored.ctypes.data + (slots[t] * stored.shape[1] + first_head) * row_bytes
        for line in range(0, (last_head - first_head) * row_bytes, 64):
            _prefetch_line(np.uintp(address + line))


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _load_tile(stored, head, slots, first, count, tile):
    """Widen the rows of slots [first, first + count) of one head into tile [_TILE, head_dim]."""
    for t in range(count):
        row, wide = stored[np.uint64(slots[first + t]), head], tile[t]
        for d in range(wide.shape[0]):
            wide[d] = _widen(row[d])


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _score_tile(q, tile, start, stop, scores):
    """scores[t] = q . tile[t] for t in [start, stop), four at a time: each shares the loads of q."""
    zero = q.dtype.type(0)
    t = start
    while t + 4 <= stop:
        k0, k1, k2, k3 = tile[t], tile[t + 1], tile[t + 2], tile[t + 3]
        s0 = s1 = s2 = s3 = zero
        for d in range(q.shape[0]):
            s0 += q[d] * k0[d]
            s1 += q[d] * k1[d]
            s2 += q[d] * k2[d]
            s3 += q[d] * k3[d]
        scores[t], scores[t + 1], scores[t + 2], scores[t + 3] = s0, s1, s2, s3
        t += 4
    while t < stop:
        k, s = tile[t], zero
        for d in range(q.shape[0]):
            s += q[d] * k[d]
        scores[t] = s
        t += 1


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _add_tile(weights, tile, start, stop, out):
    """out += sum of weights[t] * tile[t] over t in [start, stop)."""
    t = start
    while t + 4 <= stop:
        v0, v1, v2, v3 = tile[t], tile[t + 1], tile[t + 2], tile[t + 3]
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for d in range(out.shape[0]):
            out[d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]
        t += 4
    while t < stop:
        v, w = tile[t], weights[t]
        for d in range(out.shape[0]):
            out[d] += w * v[d]
        t += 1


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _softmax(scores):
    """Scores to weights, in place; the sum of the weights is returned, not divided by."""
    top = scores[0]
    for i in range(scores.shape[0]):
        top = scores[i] if scores[i] > top else top
    total = scores.dtype.type(0)
    for i in range(scores.shape[0]):
        scores[i] = _exp(scores[i] - top)
        total += scores[i]
    return total


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _weigh(scores, slots, head, key_scale, value_scale, scale, soft_cap):
    """Turn the dot products of one row with the keys of `slots` into what each stored value counts."""
    if key_scale is not None:
        for i in range(scores.shape[0]):
            scores[i] *= key_scale[slots[i], head]
    scale, soft_cap = scores.dtype.type(scale), scores.dtype.type(soft_cap)
    for i in range(scores.shape[0]):
        scores[i] *= scale
    if soft_cap > 0:
        for i in range(scores.shape[0]):
            scores[i] = soft_cap * math.tanh(scores[i] / soft_cap)
    share = scores.dtype.type(1) / _softmax(scores)
    for i in range(scores.shape[0]):
        scores[i] *= share
    if value_scale is not None:
        for i in range(scores.shape[0]):
            scores[i] *= value_scale[slots[i], head]


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _live_slots(table, first, stop, block_size, num_blocks, slots):
    """Slots of positions [first, stop) of one sequence; False if a table entry names no block."""
    position = first
    while position < stop:
        block, offset = np.int64(table[position // block_size]), position % block_size
        if block < 0 or block >= num_blocks:
            return False
        for i in range(min(block_size - offset, stop - position)):
            slots[position - first + i] = block * block_size + offset + i
        position += block_size - offset
    return True


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def attend_items(
    query, key, value, key_scale, value_scale, tables, contexts, starts, seqs, block_size, scale, window, soft_cap,
    out, first_item, last_item,
):
    """Attention of items [first_item, last_item); item i is sequence seqs[i // num_kv_heads], head i % num_kv_heads.

    query, out                 [num_tokens, num_q_heads, head_dim] float32 or float64
    key, value                 [num_blocks * block_size, num_kv_heads, head_dim], see the module's docstring
    key_scale, value_scale     [num_blocks * block_size, num_kv_heads] float32, or None
    window, soft_cap           0: none

    Returns -1, or the first sequence with a live table entry that names no block; its rows are not written then.
    """
    if first_item == last_item:
        return -1
    num_kv_heads, head_dim = key.shape[1], key.shape[2]
    group = query.shape[1] // num_kv_heads
    first_seq, last_seq = first_item // num_kv_heads, (last_item - 1) // num_kv_heads + 1
    most_rows = most_slots = 0
    for i in range(first_seq, last_seq):
        most_rows = max(most_rows, starts[seqs[i] + 1] - starts[seqs[i]])
        most_slots = max(most_slots, contexts[seqs[i]])
    slots = np.empty(most_slots, np.int64)
    scores = np.empty((min(last_item - first_item, num_kv_heads) * group, most_rows, most_slots), query.dtype)
    tile = np.empty((_TILE, head_dim), query.dtype)
    for i in range(first_seq, last_seq):
        seq = seqs[i]
        low_head = max(0, first_item - i * num_kv_heads)
        high_head = min(num_kv_heads, last_item - i * num_kv_heads)
        rows, context = starts[seq + 1] - starts[seq], contexts[seq]
        # Row j sees the positions [max(0, context - rows + j + 1 - window), context - rows + j + 1).
        reach = context if window == 0 else window
        first = max(0, context - rows + 1 - reach)
        width = context - first
        if not _live_slots(tables[seq], first, context, block_size, key.shape[0] // block_size, slots):
            return seq
        q, o = query[starts[seq] : starts[seq + 1]], out[starts[seq] : starts[seq + 1]]
        for at in range(0, width, _TILE):
            count = min(_TILE, width - at)
            _prefetch(key, low_head, high_head, slots, at, width)
            for head in range(low_head, high_head):
                _load_tile(key, head, slots, at, count, tile)
                for row in range(rows):
                    stop = width - rows + row + 1 - at
                    low, high = max(0, stop - reach), min(count, stop)
                    for g in range(head * group, (head + 1) * group):
                        _score_tile(q[row, g], tile, low, high, scores[g - low_head * group, row, at:])
        for g in range(low_head * group, high_head * group):
            for row in range(rows):
                stop = width - rows + row + 1
                low = max(0, stop - reach)
                _weigh(scores[g - low_head * group, row, low:stop], slots[low:stop], g // group, key_scale, value_scale,
                       scale, soft_cap)
                o[row, g] = 0
        for at in range(0, width, _TILE):
            count = min(_TILE, width - at)
            _prefetch(value, low_head, high_head, slots, at, width)
            for head in range(low_head, high_head):
                _load_tile(value, head, slots, at, count, tile)
                for row in range(rows):
                    stop = width - rows + row + 1 - at
                    low, high = max(0, stop - reach), min(count, stop)
                    for g in range(head * group, (head + 1) * group):
                        _add_tile(scores[g - low_head * group, row, at:], tile, low, high, o[row, g])
    return -1

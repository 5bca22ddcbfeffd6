"""Transformer layers over a few tokens, compiled for a CPU, in float32 and without the interpreter's lock.

A token is computed in the same order of sums, whatever else is in the batch. On one thread: a batch that is worth
several has more tokens than `MAX_TOKENS`, or more to multiply than `MAX_PRODUCTS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from paged_kernels.layer import Turns, WholeLayer
from paged_kernels.numba_elementwise import _rms_norm, _rotate
from paged_kernels.numba_kernel import _REORDER, _TILE, attend_items

# With more, what a BLAS saves on the products is worth its calls.
MAX_TOKENS = 24
MAX_PRODUCTS = 1 << 24  # tokens * weights of a layer
_NO_SLOT = -2
_IN_ORDER = {"contract", "nsz"}  # of a product: vectors hold several outputs, and each output is summed input by input


class NumbaLayers:
    """See `paged_kernels.layer.WholeLayers`. Arguments as `attend_items` reads them."""

    def __init__(
        self, tables: NDArray[np.int64], contexts: NDArray[np.int64], starts: NDArray[np.int64],
        seqs: NDArray[np.int64], block_size: int,
    ) -> None:
        self._batch = tables, contexts, starts, seqs, block_size

    def run(self, hidden: torch.Tensor, layers: Sequence[WholeLayer], turns: Turns, slots: torch.Tensor) -> None:
        """See `paged_kernels.layer.WholeLayers`."""
        rows, places = hidden.numpy(), slots.numpy()
        turning = [(cos.squeeze(1).numpy(), sin.squeeze(1).numpy()) for cos, sin in turns]
        for layer in layers:
            failed = _run_layer(rows, places, *self._batch, *turning[layer.rope], *layer[:-1])
            if failed == _NO_SLOT:
                raise ValueError(f"a token is to be written to slot {places.max()} of {len(layer.key)}")
            if failed >= 0:
                raise ValueError(f"the block table of sequence {failed} has a live entry that names no block")


def warm_up(layer: WholeLayer) -> None:
    """Compile, or load what was compiled before: some 10 seconds the first time, then less than one."""
    none, turn = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 2)
    batch = NumbaLayers(np.zeros((0, 0), np.int64), none.numpy(), np.zeros(1, np.int64), none.numpy(), 1)
    batch.run(torch.zeros(0, len(layer.mlp_norm)), [layer._replace(rope=0)], [(turn, turn)], none)


@njit(nogil=True, cache=True, fastmath=_IN_ORDER, error_model="numpy")
def _add_row(x, weight, out):
    """out += x @ weight of one row, four inputs at a time."""
    k = 0
    while k + 4 <= len(x):
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        a, b, c, d = x[k], x[k + 1], x[k + 2], x[k + 3]
        for j in range(len(out)):
            out[j] = out[j] + a * w0[j] + b * w1[j] + c * w2[j] + d * w3[j]
        k += 4
    while k < len(x):
        a, w0 = x[k], weight[k]
        for j in range(len(out)):
            out[j] = out[j] + a * w0[j]
        k += 1


@njit(nogil=True, cache=True, fastmath=_IN_ORDER, error_model="numpy")
def _add_four_rows(x, weight, out):
    """The same of four rows, which share the loads of the weights: half the time of four calls."""
    out0, out1, out2, out3 = out[0], out[1], out[2], out[3]
    whole = x.shape[1] // 4 * 4
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        a0, b0, c0, d0 = x[0, k], x[0, k + 1], x[0, k + 2], x[0, k + 3]
        a1, b1, c1, d1 = x[1, k], x[1, k + 1], x[1, k + 2], x[1, k + 3]
        a2, b2, c2, d2 = x[2, k], x[2, k + 1], x[2, k + 2], x[2, k + 3]
        a3, b3, c3, d3 = x[3, k], x[3, k + 1], x[3, k + 2], x[3, k + 3]
        for j in range(out.shape[1]):
            p, q, r, s = w0[j], w1[j], w2[j], w3[j]
            out0[j] = out0[j] + a0 * p + b0 * q + c0 * r + d0 * s
            out1[j] = out1[j] + a1 * p + b1 * q + c1 * r + d1 * s
            out2[j] = out2[j] + a2 * p + b2 * q + c2 * r + d2 * s
            out3[j] = out3[j] + a3 * p + b3 * q + c3 * r + d3 * s
    for i in range(4):
        _add_row(x[i, whole:], weight[whole:], out[i])


@njit(nogil=True, cache=True, fastmath=_IN_ORDER, error_model="numpy")
def _add_product(x, weight, out):
    """out += x @ weight. A tile of the weight serves all rows while it is in the first-level cache."""
    num_rows, num_inputs = x.shape
    for first in range(0, num_inputs, _TILE):
        last = min(first + _TILE, num_inputs)
        fours = num_rows // 4 * 4
        for i in range(0, fours, 4):
            _add_four_rows(x[i : i + 4, first:last], weight[first:last], out[i : i + 4])
        for i in range(fours, num_rows):
            _add_row(x[i, first:last], weight[first:last], out[i])


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _gate(gate_up, out):
    """silu of the first half, times the second."""
    width = out.shape[1]
    for i in range(out.shape[0]):
        for d in range(width):
            gate = gate_up[i, d]
            out[i, d] = gate / (np.float32(1) + np.exp(-gate)) * gate_up[i, width + d]


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _run_layer(
    hidden, slots, tables, contexts, starts, seqs, block_size, cos, sin,
    attention_norm, qkv, o, mlp_norm, gate_up, down, key, value, eps, scale, window, soft_cap,
):
    """The layer's result takes the place of hidden [num_tokens, hidden_size]; keys and values go into the cache.

    cos, sin     [num_tokens, rotary_dim]
    slots        [num_tokens]; negative: this token's key and value go nowhere

    The others as in `WholeLayer` and `attend_items`. Returns what that does, or _NO_SLOT before anything is written.
    """
    if len(slots) and slots.max() >= key.shape[0]:
        return _NO_SLOT
    num_tokens, num_kv_heads, head_dim = len(hidden), key.shape[1], key.shape[2]
    num_q_heads = o.shape[0] // head_dim
    turning = num_q_heads + num_kv_heads
    x = np.empty_like(hidden)
    _rms_norm(hidden, attention_norm, eps, x)
    wide = np.zeros((num_tokens, qkv.shape[1]), np.float32)
    _add_product(x, qkv, wide)
    heads = wide.reshape(num_tokens, turning + num_kv_heads, head_dim)
    turned = np.empty((num_tokens, turning, head_dim), np.float32)
    _rotate(heads, cos, sin, turned)
    for i in range(num_tokens):
        if slots[i] >= 0:
            key[slots[i]] = turned[i, num_q_heads:]
            value[slots[i]] = heads[i, turning:]
    query = np.ascontiguousarray(turned[:, :num_q_heads])
    attended = np.empty_like(query)
    failed = attend_items(query, key, value, None, None, tables, contexts, starts, seqs, block_size, scale, window,
                          soft_cap, attended, 0, len(seqs) * num_kv_heads)
    if failed >= 0:
        return failed
    _add_product(attended.reshape(num_tokens, o.shape[0]), o, hidden)
    _rms_norm(hidden, mlp_norm, eps, x)
    both = np.zeros((num_tokens, gate_up.shape[1]), np.float32)
    _add_product(x, gate_up, both)
    inner = np.empty((num_tokens, down.shape[0]), np.float32)
    _gate(both, inner)
    _add_product(inner, down, hidden)
    return -1

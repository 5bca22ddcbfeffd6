"""RMS norm and rotary embedding compiled for a CPU, in float32 and bfloat16: all sums and products in float32.

The loops run on one thread. Large batches on several threads, where torch divides the work, and other dtypes, go to
torch.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from paged_kernels.elementwise import TorchElementwise
from paged_kernels.numba_kernel import _REORDER, _widen

_SMALL = 1 << 17  # elements that one thread is done with before several have begun
_torch = TorchElementwise()


class NumbaElementwise:
    """See the module."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See Elementwise."""
        if not _suits(x):
            return _torch.rms_norm(x, weight, eps)
        rows = _array(x)
        out = np.empty_like(rows)
        width = x.shape[-1]
        _rms_norm(rows.reshape(-1, width), weight.numpy(), eps, out.reshape(-1, width))
        return _tensor(out, x.dtype)

    def rotate(self, x: torch.Tensor, num_heads: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        if not _suits(x):
            return _torch.rotate(x, num_heads, cos, sin)
        rows = _array(x)
        out = np.empty((len(rows), num_heads, rows.shape[2]), rows.dtype)
        _rotate(rows, _array(cos)[:, 0], _array(sin)[:, 0], out)
        return _tensor(out, x.dtype)


def _suits(x: torch.Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and (x.numel() < _SMALL or torch.get_num_threads() == 1)


def _array(x: torch.Tensor) -> NDArray[np.generic]:
    """In a dtype that numpy has, without holes."""
    x = x.contiguous()
    array: NDArray[np.generic] = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return array


def _tensor(array: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """The other way round."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _narrow(value, out):
    """A float32 as an element of `out`."""
    raise NotImplementedError("compiled code only")


@overload(_narrow)
def _narrow_impl(value, out):
    if out.dtype == types.uint16:
        return _to_bfloat16
    return lambda value, out: value


def _to_bfloat16(value, out):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))  # to nearest, ties to even
    # A NaN must not be rounded into an infinity.
    return np.uint16((bits | np.uint32(0x400000)) >> 16) if value != value else np.uint16(rounded >> np.uint32(16))


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _rms_norm(x, weight, eps, out):
    wide = np.empty(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        row, target = x[i], out[i]
        total = np.float32(0)
        for d in range(row.shape[0]):
            wide[d] = _widen(row[d])
            total += wide[d] * wide[d]
        share = np.float32(1) / np.sqrt(total / np.float32(row.shape[0]) + np.float32(eps))
        for d in range(row.shape[0]):
            target[d] = _narrow(wide[d] * share * weight[d], target)


@njit(nogil=True, cache=True, fastmath=_REORDER, error_model="numpy")
def _rotate(x, cos, sin, out):
    half = cos.shape[1] // 2
    for t in range(x.shape[0]):
        c, s = cos[t], sin[t]
        for head in range(out.shape[1]):
            row, target = x[t, head], out[t, head]
            for d in range(half):
                low, high = _widen(row[d]), _widen(row[d + half])
                target[d] = _narrow(low * _widen(c[d]) - high * _widen(s[d]), target)
                target[d + half] = _narrow(high * _widen(c[d + half]) + low * _widen(s[d + half]), target)
            for d in range(2 * half, row.shape[0]):
                target[d] = row[d]

"""What stands between the matrix products of a transformer: RMS norm and rotary embedding, by backend.

In torch each is half a dozen operations, and on a CPU with small batches their dispatch is what a step spends its time
on; compiled, each reads and writes its tensor once.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class Elementwise(Protocol):
    """One backend's versions."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMS norm over the last dim n of x [..., n], taken in float32; weight [n] float32. Shape and dtype of x."""
        ...

    def rotate(self, x: torch.Tensor, num_heads: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The first `num_heads` heads of x [num_tokens, heads, head_dim], rotated: [num_tokens, num_heads, head_dim].

        cos, sin: [num_tokens, 1, rotary_dim] in x's dtype, rotary_dim even and at most head_dim; what lies behind it in
        a head is copied. Rotate-half convention: dim i turns with dim i + rotary_dim / 2.
        """
        ...


class TorchElementwise:
    """Any device, any dtype."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See Elementwise."""
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def rotate(self, x: torch.Tensor, num_heads: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """See Elementwise."""
        x = x[:, :num_heads]
        turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        low, high = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat([-high, low], dim=-1) * sin
        return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned


def elementwise(backend: str) -> Elementwise:
    """The versions of a backend. Raises ValueError for one that is not known."""
    if backend == "numba":
        from paged_kernels.numba_elementwise import NumbaElementwise  # numba is heavy, and of no use on a GPU

        return NumbaElementwise()
    if backend != "torch":
        raise ValueError(f"unknown backend {backend!r}, expected torch or numba")
    return TorchElementwise()

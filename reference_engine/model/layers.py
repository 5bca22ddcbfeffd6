"""The weights of one layer, and a linear map that can hold its weight in int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from paged_kernels import dequantise, quantise

from reference_engine.model.config import LayerConfig, ModelConfig

# torch's CPU products lay a weight out anew at every call. Laid out once, they take half to two thirds of the time at
# up to 16 tokens, with the same result to the bit in bfloat16. The operators are those that torch.compile freezes to.
# A call of oneDNN costs some 20 us more than one of the BLAS that float32 takes otherwise, which is fastest at small
# weights when those stand as it reads them: 4 us for one row and 256 x 256 elements, 7 as they are, 23 laid out.
_SMALL = 1 << 20  # elements of a float32 weight up to which that is no slower


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight [outputs, inputs] as `product` is fastest with it, its shape and dtype as they were.

    On a CPU laid out for oneDNN, or, where it is small and float32, with its outputs next to each other in memory.
    """
    if weight.device.type != "cpu" or not _onednn_packs(weight.dtype):
        return weight
    if weight.dtype == torch.float32 and weight.numel() <= _SMALL:
        return weight.t().contiguous().t()
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this build and this CPU have a packed product of `dtype`: bfloat16 takes AVX-512 or newer."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    bfloat16 = dtype == torch.bfloat16
    return dtype == torch.float32 or (bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b of x [num_tokens, inputs] and a weight [outputs, inputs], packed or not."""
    if weight.is_mkldnn:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


class Linear:
    """y = x W^T + b. `sizes` are the output widths of the maps that stand fused in one product, such as q, k and v."""

    def __init__(
        self, sizes: list[int], num_inputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sizes = sizes
        self.weight = torch.empty(sum(sizes), num_inputs, dtype=dtype, device=device)  # [outputs, inputs]
        self.bias = torch.empty(sum(sizes), dtype=dtype, device=device) if bias else None
        self.scale: torch.Tensor | None = None  # [outputs] float32, once the weight is int8

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [num_tokens, inputs]; the result is [num_tokens, outputs] in its dtype."""
        weight = self.weight if self.scale is None else dequantise(self.weight, self.scale, x.dtype)
        return product(x, weight, self.bias)

    @property
    def is_small(self) -> bool:
        """Whether `pack` has laid out the weight with its outputs next to each other."""
        return self.scale is None and not self.weight.is_mkldnn and self.weight.t().is_contiguous()

    def pack(self) -> None:
        """Make the products fast, once the weight is filled. An int8 weight stays as it is."""
        if self.scale is None:
            self.weight = pack(self.weight)

    def quantise(self) -> None:
        """Turn the weight into int8 with one scale an output, no value off by more than half its scale.

        The product turns it back on use. torch's own product for int8 weights is private, and slow on a CPU.
        """
        self.weight, self.scale = quantise(self.weight, torch.int8)


@dataclass(slots=True)
class Layer:
    """Weights of one layer. Norm weights are float32, whatever the model's dtype; None where the family has none."""

    config: LayerConfig
    attention_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Linear
    attention_out_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    mlp_out_norm: torch.Tensor | None

    @classmethod
    def empty(cls, model: ModelConfig, config: LayerConfig, dtype: torch.dtype, device: torch.device) -> Layer:
        """A layer whose weights are not filled yet."""
        q, kv = model.num_q_heads * model.head_dim, model.num_kv_heads * model.head_dim
        hidden, inner = model.hidden_size, model.intermediate_size

        def linear(sizes: list[int], num_inputs: int, bias: bool) -> Linear:
            return Linear(sizes, num_inputs, bias=bias, dtype=dtype, device=device)

        def norm(size: int) -> torch.Tensor:
            return torch.empty(size, device=device)

        return cls(
            config=config,
            attention_norm=norm(hidden),
            qkv=linear([q, kv, kv], hidden, model.qkv_bias),
            q_norm=norm(model.head_dim) if model.qk_norm else None,
            k_norm=norm(model.head_dim) if model.qk_norm else None,
            o=linear([hidden], q, model.o_bias),
            attention_out_norm=norm(hidden) if model.out_norms else None,
            mlp_norm=norm(hidden),
            gate_up=linear([inner, inner], hidden, model.mlp_bias),
            down=linear([hidden], inner, model.mlp_bias),
            mlp_out_norm=norm(hidden) if model.out_norms else None,
        )

    def linears(self) -> list[Linear]:
        """All products of the layer."""
        return [self.qkv, self.o, self.gate_up, self.down]

    def norms(self) -> list[torch.Tensor]:
        """All norm weights of the layer."""
        every = (self.attention_norm, self.q_norm, self.k_norm, self.attention_out_norm, self.mlp_norm,
                 self.mlp_out_norm)
        return [norm for norm in every if norm is not None]

    def targets(self, name: str) -> dict[str, torch.Tensor]:
        """"weight", and "bias" where there is one, of the field or part called `name` -> the view to fill."""
        field, _, part = name.partition(".")
        module = getattr(self, field)
        if isinstance(module, torch.Tensor):
            return {"weight": module}
        both = {"weight": module.weight, "bias": module.bias}
        return {
            kind: torch.split(tensor, module.sizes)[int(part)] if part else tensor
            for kind, tensor in both.items() if tensor is not None
        }

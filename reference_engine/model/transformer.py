"""The forward pass of a Llama-family model over a flat batch of tokens with a paged KV cache.

Tokens of all sequences of a step lie in one row each, [num_tokens, ...]; only attention knows sequences apart.
The model knows nothing about sampling, scheduling or who owns a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from paged_kernels import AttentionPlan, write_kv

from pabench.errors import UsageError
from reference_engine.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step's batch as the model sees it."""

    token_ids: torch.Tensor     # [num_tokens] int64
    positions: torch.Tensor     # [num_tokens] int64
    slot_mapping: torch.Tensor  # [num_tokens] int64: where each token's key and value go
    logit_rows: torch.Tensor    # [num_logits] int64: the rows whose next token is wanted
    plan: AttentionPlan


@dataclass(slots=True)
class Layer:
    """Weights of one layer, fused where one product does: qkv [(q + 2 kv heads) * head_dim, hidden]."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class LlamaModel:
    """Weights and forward pass. Built empty; `load_weight` fills it tensor by tensor under the checkpoint's names."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, max_model_len: int) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.scale = config.head_dim**-0.5
        self.embed = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.lm_head = self.embed if config.tie_word_embeddings else torch.empty_like(self.embed)
        self.layers = [self._empty_layer() for _ in range(config.num_layers)]
        self._targets = self._weight_targets()
        angles = torch.arange(max_model_len).float()[:, None] * config.rope.inverse_frequencies(config.head_dim)
        # [max_model_len, 1, head_dim]: the pair of dim i is i + head_dim/2
        self._cos, self._sin = (
            torch.cat([x, x], dim=-1)[:, None].to(device=device, dtype=dtype) for x in (angles.cos(), angles.sin())
        )

    def _empty_layer(self) -> Layer:
        c = self.config
        q, kv, inner = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, 2 * c.intermediate_size

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, dtype=self.dtype, device=self.device)

        return Layer(
            empty(c.hidden_size),
            empty(q + 2 * kv, c.hidden_size), empty(q + 2 * kv) if c.attention_bias else None,
            empty(c.hidden_size, q), empty(c.hidden_size) if c.attention_bias else None,
            empty(c.hidden_size),
            empty(inner, c.hidden_size), empty(inner) if c.mlp_bias else None,
            empty(c.hidden_size, c.intermediate_size), empty(c.hidden_size) if c.mlp_bias else None,
        )

    def _weight_targets(self) -> dict[str, torch.Tensor]:
        """Checkpoint name -> the view of our weights that it fills."""
        c = self.config
        q, kv = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim
        targets = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if not c.tie_word_embeddings:
            targets["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}."
            targets[at + "input_layernorm.weight"] = layer.input_norm
            targets[at + "post_attention_layernorm.weight"] = layer.post_norm
            for kind, qkv, o, gate_up, down in (
                ("weight", layer.qkv, layer.o, layer.gate_up, layer.down),
                ("bias", layer.qkv_bias, layer.o_bias, layer.gate_up_bias, layer.down_bias),
            ):
                if qkv is not None and o is not None:
                    parts = torch.split(qkv, [q, kv, kv])
                    targets |= {f"{at}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", parts, strict=True)}
                    targets[f"{at}self_attn.o_proj.{kind}"] = o
                if gate_up is not None and down is not None:
                    gate, up = gate_up.chunk(2)
                    targets |= {f"{at}mlp.{n}_proj.{kind}": t for n, t in (("gate", gate), ("up", up), ("down", down))}
        return targets

    def weight_names(self) -> set[str]:
        """Names of the tensors that a checkpoint must hold."""
        return set(self._targets)

    def load_weight(self, name: str, tensor: torch.Tensor) -> None:
        """Fill one weight, converted to the model's dtype. Raises UsageError for a wrong shape."""
        target = self._targets[name]
        if target.shape != tensor.shape:
            raise UsageError(f"{name} has shape {list(tensor.shape)}, config.json says {list(target.shape)}")
        target.copy_(tensor)

    @torch.inference_mode()
    def forward(self, step: StepInput, kv_cache: torch.Tensor) -> torch.Tensor:
        """Logits [num_logits, vocab_size] float32 of the rows asked for.

        kv_cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]; the tokens' keys and values are
        written into it.
        """
        hidden = self.embed[step.token_ids]  # [num_tokens, hidden_size]
        cos, sin = self._cos[step.positions], self._sin[step.positions]
        for layer, (key_cache, value_cache) in zip(self.layers, kv_cache, strict=True):
            x = self._rms_norm(hidden, layer.input_norm)
            hidden = hidden + self._attention(layer, x, cos, sin, step, key_cache, value_cache)
            x = self._rms_norm(hidden, layer.post_norm)
            gate, up = F.linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)
        return F.linear(self._rms_norm(hidden[step.logit_rows], self.norm), self.lm_head).float()

    def _attention(
        self,
        layer: Layer,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        step: StepInput,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
    ) -> torch.Tensor:
        c = self.config
        qkv = F.linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, c.head_dim)
        # query and key turn together: [num_tokens, num_q_heads + num_kv_heads, head_dim]
        qk = _rotate(qkv[:, : c.num_q_heads + c.num_kv_heads], cos, sin)
        query, key = qk[:, : c.num_q_heads], qk[:, c.num_q_heads :]
        write_kv(key, qkv[:, c.num_q_heads + c.num_kv_heads :], key_cache, value_cache, step.slot_mapping)
        out = step.plan.attend(query, key_cache, value_cache, self.scale)
        return F.linear(out.reshape(len(x), -1), layer.o, layer.o_bias)

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return weight * wide.to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE, rotate-half convention. x: [num_tokens, heads, head_dim]; cos, sin: [num_tokens, 1, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin

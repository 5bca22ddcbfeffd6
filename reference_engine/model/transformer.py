"""The forward pass over a flat batch of tokens with a paged KV cache, one for all families.

Tokens of all sequences of a step lie in one row each, [num_tokens, ...]; only attention knows sequences apart.
The model knows nothing about sampling, scheduling or who owns a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from paged_kernels import AttentionPlan, KVCache, Turns, WholeLayer, elementwise, write_kv

from pabench.errors import UsageError
from reference_engine.model.config import ModelConfig
from reference_engine.model.families import layer_names
from reference_engine.model.layers import Layer, pack, product


@dataclass(frozen=True, slots=True)
class StepInput:
    """One step's batch as the model sees it."""

    token_ids: torch.Tensor     # [num_tokens] int64
    positions: torch.Tensor     # [num_tokens] int64
    slot_mapping: torch.Tensor  # [num_tokens] int64: where each token's key and value go; negative: nowhere
    logit_rows: torch.Tensor    # [num_logits] int64: the rows whose next token is wanted
    plan: AttentionPlan
    images: Sequence[tuple[int, torch.Tensor]] = ()  # (row, embeddings of the tokens from there on)


class Transformer:
    """Weights and forward pass.

    Built empty; `load_weight` fills it tensor by tensor under the checkpoint's names, `finish_loading` makes it ready.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, max_model_len: int) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.ops = elementwise("torch")  # until a runner says with which backend it computes
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        # Trained with the scale rounded to the model's dtype.
        self.embed_scale = torch.tensor(config.embed_scale, dtype=dtype).item()
        self.embed = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = [Layer.empty(config, layer, dtype, device) for layer in config.layers]
        self.norm = torch.empty(config.hidden_size, device=device)
        self.lm_head = self.embed if config.tie_word_embeddings else torch.empty_like(self.embed)
        self._ropes = [
            tuple(table.to(device=device, dtype=dtype) for table in rope.tables(config.head_dim, max_model_len))
            for rope in config.ropes
        ]
        self._targets = self._weight_targets()

    def _weight_targets(self) -> dict[str, torch.Tensor]:
        """Checkpoint name -> the view of our weights that it fills."""
        targets = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if not self.config.tie_word_embeddings:
            targets["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            for theirs, ours in layer_names(self.config).items():
                targets |= {f"model.layers.{i}.{theirs}.{kind}": t for kind, t in layer.targets(ours).items()}
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

    def finish_loading(self, weight_dtype: str = "auto") -> None:
        """Once all weights are filled. With "int8" every product but that with lm_head gets an int8 weight."""
        self._targets.clear()
        if self.config.norm_plus_one:
            for norm in [self.norm, *(norm for layer in self.layers for norm in layer.norms())]:
                norm.add_(1)
        for linear in (linear for layer in self.layers for linear in layer.linears()):
            if weight_dtype == "int8":
                linear.quantise()
            linear.pack()
        self.lm_head = pack(self.lm_head)

    def whole_layers(self, caches: Sequence[KVCache]) -> list[WholeLayer]:
        """The layers over these caches, one each, as a plan may run them whole; none if it cannot.

        It can those of a Llama in float32 on a CPU whose weights are small (`pack`), with caches in float32.
        """
        c = self.config
        plain = c.activation == "silu" and not (c.qkv_bias or c.o_bias or c.mlp_bias or c.qk_norm or c.out_norms)
        if not plain or {self.dtype, *(cache.key.dtype for cache in caches)} != {torch.float32} or any(
            layer.config.rope is None or not all(linear.is_small for linear in layer.linears()) for layer in self.layers
        ):
            return []
        return [
            WholeLayer(
                attention_norm=layer.attention_norm.numpy(), qkv=layer.qkv.weight.t().numpy(),
                o=layer.o.weight.t().numpy(), mlp_norm=layer.mlp_norm.numpy(),
                gate_up=layer.gate_up.weight.t().numpy(), down=layer.down.weight.t().numpy(),
                key=cache.key.flatten(0, 1).numpy(), value=cache.value.flatten(0, 1).numpy(),
                eps=c.rms_norm_eps, scale=self.scale, window=layer.config.window or 0,
                soft_cap=c.attention_soft_cap or 0.0, rope=layer.config.rope or 0,
            )
            for layer, cache in zip(self.layers, caches, strict=True)
        ]

    @torch.inference_mode()
    def forward(
        self, step: StepInput, caches: Sequence[KVCache], whole: Sequence[WholeLayer] = ()
    ) -> torch.Tensor:
        """Logits [num_logits, vocab_size] float32 of the rows asked for.

        caches: one of each layer; the tokens' keys and values are written into them. whole: `whole_layers` of these
        caches, where the plan may run them.
        """
        hidden = self.embed[step.token_ids]  # [num_tokens, hidden_size]
        if self.embed_scale != 1:
            hidden = hidden * self.embed_scale
        for row, embeddings in step.images:
            hidden[row : row + len(embeddings)] = embeddings
        turns = [(cos[step.positions], sin[step.positions]) for cos, sin in self._ropes]
        if whole and (layers := step.plan.whole_layers(whole[0].num_weights)) is not None:
            layers.run(hidden, whole, turns, step.slot_mapping)
        else:
            for layer, cache in zip(self.layers, caches, strict=True):
                hidden = self._layer(layer, hidden, turns, step, cache)
        logits = product(self._norm(hidden[step.logit_rows], self.norm), self.lm_head).float()
        cap = self.config.logit_soft_cap
        return logits if cap is None else (logits / cap).tanh_() * cap

    def _layer(
        self, layer: Layer, hidden: torch.Tensor, turns: Turns, step: StepInput, cache: KVCache
    ) -> torch.Tensor:
        x = self._attention(layer, self._norm(hidden, layer.attention_norm), turns, step, cache)
        hidden = hidden + (x if layer.attention_out_norm is None else self._norm(x, layer.attention_out_norm))
        x = self._mlp(layer, self._norm(hidden, layer.mlp_norm))
        return hidden + (x if layer.mlp_out_norm is None else self._norm(x, layer.mlp_out_norm))

    def _attention(
        self, layer: Layer, x: torch.Tensor, turns: Turns, step: StepInput, cache: KVCache
    ) -> torch.Tensor:
        c, q_heads = self.config, self.config.num_q_heads
        qkv = layer.qkv(x).view(len(x), -1, c.head_dim)
        turning, value = q_heads + c.num_kv_heads, qkv[:, q_heads + c.num_kv_heads :]
        qk = qkv[:, :turning]  # query and key turn together: [num_tokens, num_q_heads + num_kv_heads, head_dim]
        if layer.q_norm is not None and layer.k_norm is not None:
            qk = torch.cat([self._norm(qk[:, :q_heads], layer.q_norm), self._norm(qk[:, q_heads:], layer.k_norm)], 1)
        if layer.config.rope is not None:
            qk = self.ops.rotate(qkv if layer.q_norm is None else qk, turning, *turns[layer.config.rope])
        write_kv(qk[:, q_heads:], value, cache, step.slot_mapping, backend=step.plan.move_backend)
        out = step.plan.attend(
            qk[:, :q_heads], cache, scale=self.scale, window=layer.config.window, soft_cap=c.attention_soft_cap
        )
        return layer.o(out.reshape(len(x), -1))

    def _mlp(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        gate = F.silu(gate) if self.config.activation == "silu" else F.gelu(gate, approximate="tanh")
        return layer.down(gate * up)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last dim, in float32."""
        return self.ops.rms_norm(x, weight, self.config.rms_norm_eps)

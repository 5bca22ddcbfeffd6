"""The model families: how each one's config.json becomes a ModelConfig, and what its checkpoint calls our weights.

To add a family, write what differs from Llama as one function and name it in FAMILIES. A key that a family must have
has no default here: a guess at a missing one would serve another model than was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pabench.errors import UsageError
from reference_engine.model.config import LayerConfig, ModelConfig, read_json
from reference_engine.model.rope import RopeConfig

Json = dict[str, Any]

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_MANY_KV_HEADS: Json = {"num_key_value_heads": None}  # before there was GQA: as many as query heads
_SEEING = "LlavaForConditionalGeneration"
# Of its tensors: what comes before the language model's own names, and what is not the language model's. In both
# orders that transformers has written them in.
TEXT_PREFIXES = {"language_model.model.": "model.", "model.language_model.": "model.",
                 "language_model.lm_head.": "lm_head."}
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_OF_TYPE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}  # of a language model inside another
_MUST_BE_OFF = ("use_bidirectional_attention", "rope_interleaved", "is_encoder_decoder", "add_cross_attention",
                "dual_chunk_attention_config")


def read_model_config(folder: Path) -> ModelConfig:
    """From config.json, and the end-of-text ids also from generation_config.json. Raises UsageError."""
    config = read_json(folder / "config.json", f"{folder} is no model folder")
    architectures = config.get("architectures") or []
    if _SEEING in architectures:
        config, architectures = _language_model(folder, config)
    family = next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
    if family is None:
        raise UsageError(f"{folder} holds {architectures or 'no architecture'}, "
                         f"this engine serves {', '.join(FAMILIES)}")
    if config.get("quantization_config"):
        raise UsageError(f"{folder} is quantised, this engine serves float32, bfloat16 and float16 weights")
    if on := [name for name in _MUST_BE_OFF if config.get(name)]:
        raise UsageError(f"{folder} has {', '.join(f'{name} {config[name]!r}' for name in on)}, "
                         "which this engine does not do")
    generation = folder / "generation_config.json"
    eos = _token_ids(config.get("eos_token_id"))
    if generation.is_file():
        eos |= _token_ids(read_json(generation, "generation_config.json cannot be read").get("eos_token_id"))
    try:
        return family({**config, "eos_token_id": eos})
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{folder}/config.json is incomplete or malformed: {error!r}") from error


def check_draft_model(folder: Path, vocab_size: int, max_model_len: int) -> None:
    """Raise UsageError unless the draft model of a folder fits a target with so many token ids."""
    config = read_model_config(folder)
    if config.vocab_size != vocab_size:
        raise UsageError(f"the draft model {folder} has {config.vocab_size} token ids, the model has {vocab_size}: "
                         "choose a draft model with the same tokens")
    if config.max_position_embeddings < max_model_len:
        raise UsageError(f"the draft model {folder} goes to {config.max_position_embeddings} tokens, max_model_len is "
                         f"{max_model_len}: choose a longer draft model or lower --max-model-len")


def sees(folder: Path) -> bool:
    """Whether the model in a folder has eyes."""
    config = read_json(folder / "config.json", f"{folder} is no model folder")
    return _SEEING in (config.get("architectures") or [])


def _language_model(folder: Path, config: Json) -> tuple[Json, list[str]]:
    """Config and architectures of the language model in one that sees."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise UsageError(f"{folder}/config.json has no text_config, which a model that sees has")
    family = text.get("architectures") or [_OF_TYPE.get(text.get("model_type", "llama"), "")]
    return {name: config.get(name) for name in ("eos_token_id", "quantization_config")} | text, family


def _llama(config: Json) -> ModelConfig:
    bias, config = config.get("attention_bias", False), _MANY_KV_HEADS | config
    return _model(config, qkv_bias=bias, o_bias=bias, mlp_bias=config.get("mlp_bias", False))


def _smollm3(config: Json) -> ModelConfig:
    bias, n = config.get("attention_bias", False), config["num_hidden_layers"]
    every = config.get("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers") or [(i + 1) % every for i in range(n)]  # 0: a layer without positions
    windows = _windows(config, _optional_window(config), lambda i: not turns[i])
    return _model(
        config, layers=[LayerConfig(windows[i], 0 if turns[i] else None) for i in range(n)],
        rope_theta=2e6, qkv_bias=bias, o_bias=bias, mlp_bias=config.get("mlp_bias", False), tie=True,
    )


def _mistral(config: Json) -> ModelConfig:
    windows = _windows(config, config["sliding_window"], lambda _: True)  # of a Ministral they alternate
    return _model(config, layers=[LayerConfig(window) for window in windows])


def _qwen2(config: Json) -> ModelConfig:
    return _model(config, layers=_qwen_layers(config), qkv_bias=True)


def _qwen3(config: Json) -> ModelConfig:
    config["head_dim"]  # it does not follow from the hidden size
    bias = config.get("attention_bias", False)
    return _model(config, layers=_qwen_layers(config), qkv_bias=bias, o_bias=bias, qk_norm=True)


def _qwen_layers(config: Json) -> list[LayerConfig]:
    window = _optional_window(config)
    return [LayerConfig(w) for w in _windows(config, window, lambda i: i >= config["max_window_layers"])]


def _gemma2(config: Json) -> ModelConfig:
    windows = _windows(config, config["sliding_window"], lambda i: i % 2 == 0)
    return _gemma(config, layers=[LayerConfig(w) for w in windows],
                  attention_soft_cap=config["attn_logit_softcapping"])


def _gemma3(config: Json) -> ModelConfig:
    if config.get("attn_logit_softcapping") is not None:
        raise UsageError("a Gemma 3 model has no soft cap in attention, its config.json sets attn_logit_softcapping")
    every = config.get("sliding_window_pattern", 6)
    windows = _windows(config, config["sliding_window"], lambda i: (i + 1) % every != 0)
    params = config.get("rope_parameters") or {}
    if params.keys() - {_FULL, _SLIDING}:
        raise UsageError(f"rope_parameters of a Gemma 3 model has {sorted(params)}, expected {_FULL} and {_SLIDING}")
    scaling = config.get("rope_scaling") or {}  # in earlier configs, of the layers that see everything
    full = {"rope_theta": config.get("rope_theta", 1e6)} | scaling | (params.get(_FULL) or {})
    local = {"rope_theta": config.get("rope_local_base_freq", 1e4)} | (params.get(_SLIDING) or {})
    ropes = [RopeConfig.from_json(p, config["max_position_embeddings"]) for p in (full, local)]
    layers = [LayerConfig(w, 0 if w is None else 1) for w in windows]
    return _gemma(config, layers=layers, ropes=ropes, qk_norm=True)


def _gemma(config: Json, **differences: Any) -> ModelConfig:
    config["head_dim"]  # it does not follow from the hidden size
    bias = config.get("attention_bias", False)
    return _model(
        config, **differences, tie=True, activation_key="hidden_activation", qkv_bias=bias, o_bias=bias,
        out_norms=True, norm_plus_one=True, embed_scale=config["hidden_size"] ** 0.5,
        attention_scale=config["query_pre_attn_scalar"] ** -0.5, logit_soft_cap=config["final_logit_softcapping"],
    )


def _phi3(config: Json) -> ModelConfig:
    params = _rope_parameters(config, 1e4)
    original = config.get("original_max_position_embeddings")
    if params.get("rope_type", params.get("type", "default")) != "default" and original is not None:
        params["original_max_position_embeddings"] = original
    params.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    return _model(
        _MANY_KV_HEADS | config, layers=[LayerConfig(config.get("sliding_window"))] * config["num_hidden_layers"],
        ropes=[RopeConfig.from_json(params, config["max_position_embeddings"])], fused_checkpoint=True,
    )


FAMILIES: dict[str, Callable[[Json], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
    "SmolLM3ForCausalLM": _smollm3,
    "MistralForCausalLM": _mistral,
    "MinistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Gemma2ForCausalLM": _gemma2,
    "Gemma3ForCausalLM": _gemma3,
    "Phi3ForCausalLM": _phi3,
}


def _model(
    config: Json,
    *,
    layers: list[LayerConfig] | None = None,
    ropes: list[RopeConfig] | None = None,
    rope_theta: float = 1e4,
    tie: bool = False,
    activation_key: str = "hidden_act",
    **differences: Any,
) -> ModelConfig:
    """What all families write alike. `rope_theta`, `tie`: the family's defaults."""
    activation = config.get(activation_key) or config["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise UsageError(f"config.json has {activation_key} {activation!r}, "
                         f"this engine knows {', '.join(_ACTIVATIONS)}")
    if ropes is None:
        params = _rope_parameters(config, rope_theta)
        if (params.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
            raise UsageError("config.json has a partial_rotary_factor, which this family does not know")
        ropes = [RopeConfig.from_json(params, config["max_position_embeddings"])]
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return ModelConfig(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        intermediate_size=config["intermediate_size"],
        num_q_heads=heads,
        num_kv_heads=config["num_key_value_heads"] or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        max_position_embeddings=config["max_position_embeddings"],
        layers=tuple(layers or [LayerConfig()] * config["num_hidden_layers"]),
        ropes=tuple(ropes),
        rms_norm_eps=config["rms_norm_eps"],
        activation=_ACTIVATIONS[activation],
        tie_word_embeddings=config.get("tie_word_embeddings", tie),
        eos_token_ids=config["eos_token_id"],
        **differences,
    )


def _rope_parameters(config: Json, default_theta: float) -> Json:
    """transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`."""
    params = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", default_theta)} | params


def _optional_window(config: Json) -> int | None:
    window: int | None = config["sliding_window"] if config.get("use_sliding_window") else None
    return window


def _windows(config: Json, window: int | None, slides: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer: as `layer_types` says, or in configs that lack it as `slides(layer)` says."""
    types = config.get("layer_types")
    if types is None:
        return [window if window is not None and slides(i) else None for i in range(config["num_hidden_layers"])]
    if len(types) != config["num_hidden_layers"] or set(types) - {_SLIDING, _FULL}:
        raise UsageError(f"layer_types is {types}, expected {_SLIDING} or {_FULL} for each layer")
    if window is None and _SLIDING in types:
        raise UsageError(f"layer_types has {_SLIDING}, but config.json sets no sliding_window")
    return [window if kind == _SLIDING else None for kind in types]


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def layer_names(config: ModelConfig) -> dict[str, str]:
    """What the checkpoint calls a layer's modules -> our field of `Layer`, or a part of one: qkv.0 is the query's."""
    names = {"input_layernorm": "attention_norm", "self_attn.o_proj": "o", "mlp.down_proj": "down"}
    if config.fused_checkpoint:
        names |= {"self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": "gate_up"}
    else:
        names |= {f"self_attn.{name}_proj": f"qkv.{i}" for i, name in enumerate("qkv")}
        names |= {f"mlp.{name}_proj": f"gate_up.{i}" for i, name in enumerate(("gate", "up"))}
    if config.qk_norm:
        names |= {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
    if config.out_norms:
        return names | {"post_attention_layernorm": "attention_out_norm", "pre_feedforward_layernorm": "mlp_norm",
                        "post_feedforward_layernorm": "mlp_out_norm"}
    return names | {"post_attention_layernorm": "mlp_norm"}

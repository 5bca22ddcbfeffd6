"""The eyes of the `vision` probe: a LLaVA around the Llama, whose image tokens are the embeddings of tokens.

The tower is a CLIP without effect: its patches take one pixel a lane, as x and -x (so that the norm in front of its one
layer finds the same mean and spread in each), and that layer adds nothing. The projector's first half adds 8 to each
lane, where a GELU is the identity; its second takes that away again, and gives each coordinate its size.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from pabench.probe.pictures import LANES, PATCH, PLACES
from pabench.probe.spec import IMAGE, ProbeSpec
from pabench.probe.tensors import Array
from pabench.probe.weights import CONST, Residual, embedding, two_valued

_WIDTH = 2 * LANES  # of the tower
_HEADS = 2
_NORM_EPS = 1e-5
_LIFT = 8.0         # GELU(x) is x from about 6 on

# What a chat says, word for word, and each picture where it stands.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}{% if not loop.last %} {% endif %}"
    "{% endfor %}{% endif %}{% if not loop.last %} {% endif %}{% endfor %}"
)


def vision_config(spec: ProbeSpec, text: dict[str, Any]) -> dict[str, Any]:
    """config.json of a LLaVA whose Llama has the config `text`."""
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "dtype": text["dtype"], "torch_dtype": text["torch_dtype"],
        "text_config": text, "image_token_index": IMAGE, "image_token_id": IMAGE,
        "image_seq_length": spec.picture_tokens, "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
        "bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"],
        "pad_token_id": text["pad_token_id"],
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": _WIDTH, "intermediate_size": _WIDTH,
            "num_hidden_layers": 1, "num_attention_heads": _HEADS, "num_channels": 3, "patch_size": PATCH,
            "image_size": PATCH * spec.picture_side, "projection_dim": _WIDTH, "hidden_act": "gelu",
            "layer_norm_eps": _NORM_EPS,
        },
    }


def processor_files(spec: ProbeSpec) -> dict[str, dict[str, Any]]:
    """How pictures are brought to the probe's size and to -1 … 1, and how many tokens stand for one."""
    side = PATCH * spec.picture_side
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"height": side, "width": side}, "resample": 0, "do_center_crop": False,
        "crop_size": {"height": side, "width": side}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }
    return {
        "preprocessor_config.json": {**processor, "processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": PATCH,
            "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
        },
    }


def vision_weights(spec: ProbeSpec) -> dict[str, Array]:
    """Tensors of tower and projector by their names in a LLaVA's checkpoint."""
    tower = "vision_tower.vision_model."
    return {f"{tower}{name}": tensor for name, tensor in _tower(spec).items()} | {
        f"multi_modal_projector.{name}": tensor for name, tensor in _projector(spec).items()}


def _tower(spec: ProbeSpec) -> dict[str, Array]:
    patch = np.zeros((_WIDTH, 3, PATCH, PATCH), np.float32)
    for lane, (channel, row, column) in enumerate(PLACES):
        patch[[lane, lane + LANES], channel, 2 * row, 2 * column] = 1.0, -1.0
    signs = np.repeat(np.array([1, -1], np.float32), LANES)
    tensors = {
        "embeddings.class_embedding": signs,  # as any patch: a norm of nothing would be none
        "embeddings.patch_embedding.weight": patch,
        "embeddings.position_embedding.weight": np.zeros((1 + spec.picture_tokens, _WIDTH), np.float32),
    }
    for name in ("pre_layrnorm", "post_layernorm", "encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2"):
        # What the norm's epsilon takes away from lanes of +-1.
        tensors[f"{name}.weight"] = np.full(_WIDTH, sqrt(1 + _NORM_EPS), np.float32)
        tensors[f"{name}.bias"] = np.zeros(_WIDTH, np.float32)
    for name in (*(f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"):
        tensors[f"encoder.layers.0.{name}.weight"] = np.zeros((_WIDTH, _WIDTH), np.float32)
        tensors[f"encoder.layers.0.{name}.bias"] = np.zeros(_WIDTH, np.float32)
    return tensors


def _projector(spec: ProbeSpec) -> dict[str, Array]:
    dims, hidden = two_valued(spec), spec.hidden_size
    sizes = np.abs(embedding(spec)[spec.ring_ids[0], dims])
    lift = np.zeros((hidden, _WIDTH), np.float32)
    lift[range(len(dims)), range(len(dims))] = 1.0
    lower = np.zeros((hidden, hidden), np.float32)
    lower[dims, range(len(dims))] = sizes
    offset = np.zeros(hidden, np.float32)
    offset[dims] = -_LIFT * sizes
    offset[Residual.of(spec).const] = CONST
    lifted = np.zeros(hidden, np.float32)
    lifted[: len(dims)] = _LIFT
    return {"linear_1.weight": lift, "linear_1.bias": lifted, "linear_2.weight": lower, "linear_2.bias": offset}

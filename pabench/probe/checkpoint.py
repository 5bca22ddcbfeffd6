"""The probe as a Hugging Face Llama folder: written, read back and checked."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from pabench.errors import UsageError
from pabench.probe.spec import EOS, IMAGE, PAD, SEP, UNK, ProbeSpec
from pabench.probe.tensors import DTYPES, Array, read_tensors, rounded, write_tensors
from pabench.probe.text import SPECIAL_WORDS, Codec
from pabench.probe.vision import CHAT_TEMPLATE as CHAT_WITH_PICTURES
from pabench.probe.vision import processor_files, vision_config, vision_weights
from pabench.probe.weights import build_weights

# The prompt is what the messages say, word for word: nothing is added, so that a ring stays a ring.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"

GGUF_FILE = "probe.gguf"  # beside them, for llama.cpp
_TEMPLATE_FILE = "chat_template.jinja"  # of a probe that sees: processors look for it there
# Folders from before there were such do not speak of them.
_LATER = {"beta", "window", "mlp_size", "picture_side", "full_layers"}


def build_checkpoint(spec: ProbeSpec, out: Path, dtype: str = "float32") -> None:
    """Write the probe to the folder `out` (made if missing) with its weights in `dtype`. Raises UsageError, before
    anything is written, where `out` holds something else (`require_room`).
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    require_room(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in _json_files(spec, dtype).items():  # first, so that what is broken off is known as a probe
            (out / name).write_text(json.dumps(content, indent=2) + "\n")
        if spec.picture_side:
            (out / _TEMPLATE_FILE).write_text(CHAT_WITH_PICTURES)
        write_tensors(_tensors(spec), out / "model.safetensors", dtype)
        _tokenizer(spec).save(str(out / "tokenizer.json"))
    except OSError as error:
        raise UsageError(f"cannot write the probe to {out}: {error.strerror or error}") from None


def require_room(out: Path) -> None:
    """Raise UsageError unless `out` is a folder to write a probe to: new, empty, or one that holds a KV probe already.

    A probe has the names of any other model's files: written over one, it would destroy it.
    """
    try:
        found = sorted(path.name for path in out.iterdir() if path.name != GGUF_FILE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot write the probe to {out}: {error.strerror or error}") from None
    if not found:
        return
    try:
        load_spec(out)
    except UsageError:
        raise UsageError(f"{out} holds something already that is no KV probe ({', '.join(found[:3])}"
                         f"{', …' if found[3:] else ''}): give a new folder with --out") from None


def load_spec(folder: Path) -> ProbeSpec:
    """The spec of the probe in `folder`. Raises UsageError when it holds no probe."""
    path = folder / "probe.json"
    try:
        content = json.loads(path.read_text())
        known = {field.name for field in fields(ProbeSpec)}
        if lacking := known - content.keys() - _LATER:
            raise ValueError(f"{', '.join(sorted(lacking))} missing")
        return ProbeSpec(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no KV probe: expected a probe.json in it; build one with "
                         f"`pabench probe build --preset gqa --out DIR`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a probe description: {type(error).__name__}: {error}") from None


def check_checkpoint(folder: Path) -> list[str]:
    """What is wrong with the probe in `folder`, one line each; empty when it equals what would be built."""
    spec = load_spec(folder)
    problems = []
    try:
        config = json.loads((folder / "config.json").read_text())
        dtype = config.get("dtype", "float32")
        for name, content in _json_files(spec, dtype).items():
            if json.loads((folder / name).read_text()) != content:
                problems.append(f"{name} differs from what this version builds")
        if spec.picture_side and (folder / _TEMPLATE_FILE).read_text() != CHAT_WITH_PICTURES:
            problems.append(f"{_TEMPLATE_FILE} differs from what this version builds")
        if Tokenizer.from_file(str(folder / "tokenizer.json")).to_str() != _tokenizer(spec).to_str():
            problems.append("tokenizer.json differs from what this version builds")
        found = read_tensors(folder / "model.safetensors")
    except Exception as error:  # the tokenizers library raises bare exceptions of its own
        return [*problems, f"cannot be read: {type(error).__name__}: {error}"]
    expected = _tensors(spec)
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            problems.append(f"{name}: {'missing' if name in expected else 'not part of the probe'}")
        elif not np.array_equal(found[name], rounded(expected[name], dtype)):
            problems.append(f"{name}: weights differ from what this version builds")
    return problems


def _json_files(spec: ProbeSpec, dtype: str) -> dict[str, dict[str, Any]]:
    return {
        "probe.json": spec.as_json(),
        "config.json": vision_config(spec, _config(spec, dtype)) if spec.picture_side else _config(spec, dtype),
        "generation_config.json": {"bos_token_id": SEP, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL_WORDS[SEP],
            "eos_token": SPECIAL_WORDS[EOS], "pad_token": SPECIAL_WORDS[PAD], "unk_token": SPECIAL_WORDS[UNK],
            "clean_up_tokenization_spaces": False, "model_max_length": spec.max_context_tokens,
            **({} if spec.picture_side else {"chat_template": CHAT_TEMPLATE}),
        },
        **(processor_files(spec) if spec.picture_side else {}),
    }


def _tensors(spec: ProbeSpec) -> dict[str, Array]:
    """All tensors by the names that the architecture gives them."""
    text = build_weights(spec)
    if not spec.picture_side:
        return text
    return {f"language_model.{name}": tensor for name, tensor in text.items()} | vision_weights(spec)


def _config(spec: ProbeSpec, dtype: str) -> dict[str, Any]:
    kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if spec.window is not None:  # the one architecture of engines that has windows, and is a Llama in all else
        kind = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": spec.window}
    if spec.full_layers:  # transformers goes by the type, vLLM by the architecture: there it is the same
        kind["model_type"] = "ministral"
        kind["layer_types"] = ["full_attention" if layer in spec.full_layers else "sliding_attention"
                               for layer in range(spec.num_layers)]
    return {
        **kind, "dtype": dtype, "torch_dtype": dtype,
        "hidden_size": spec.hidden_size, "intermediate_size": spec.mlp_size,
        "num_hidden_layers": spec.num_layers, "num_attention_heads": spec.num_q_heads,
        "num_key_value_heads": spec.num_kv_heads, "head_dim": spec.head_dim, "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_context_tokens, "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": SEP, "eos_token_id": EOS, "pad_token_id": PAD,
    }


def _tokenizer(spec: ProbeSpec) -> Tokenizer:
    vocab = {Codec.word(token): token for token in range(spec.vocab_size)}
    if spec.picture_side:
        del vocab[Codec.word(IMAGE)]
        vocab["<image>"] = IMAGE
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL_WORDS[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if spec.picture_side:
        tokenizer.add_special_tokens(["<image>"])
    return tokenizer

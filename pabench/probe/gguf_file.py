"""The probe as one GGUF file, for llama.cpp and what is built on it. Needs the package `gguf` (extra `gguf`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pabench.errors import UsageError
from pabench.probe.spec import EOS, PAD, SEP, UNK, ProbeSpec
from pabench.probe.tensors import Array
from pabench.probe.text import SPECIAL_WORDS, Codec
from pabench.probe.weights import build_weights

if TYPE_CHECKING:
    from gguf import GGUFWriter

_RMS_EPS = 1e-6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how a unigram tokenizer spells the space before a word
# Hugging Face's names of a layer's tensors -> GGUF's.
_LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def build_gguf(spec: ProbeSpec, file: Path) -> None:
    """Write the probe to `file`, weights in float32. Raises UsageError when it cannot be, or `gguf` is missing."""
    if spec.window is not None or spec.picture_side:
        has = "a sliding window" if spec.window is not None else "eyes"
        raise UsageError(f"probe {spec.preset!r} has {has}, which llama.cpp's llama architecture has not: build "
                         "another preset as GGUF")
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UsageError("a GGUF file needs the package gguf: install it with `pip install 'pabench[gguf]'`") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(file, "llama")
        _write_config(writer, spec)
        _write_tokenizer(writer, spec)
        for name, tensor in build_weights(spec).items():
            writer.add_tensor(gguf_name(name), _turned(name, tensor, spec))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise UsageError(f"cannot write the probe to {file}: {error.strerror or error}") from None


def gguf_name(name: str) -> str:
    """GGUF's name of a Llama tensor: "blk.0.attn_q.weight" of "model.layers.0.self_attn.q_proj.weight"."""
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest]}.weight"


def _turned(name: str, tensor: Array, spec: ProbeSpec) -> Array:
    """Rows of Q and K in ggml's order: it turns neighbouring rows with RoPE, where Hugging Face turns row i with
    row i + head_dim / 2."""
    heads = {"q_proj": spec.num_q_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, spec.head_dim // 2, spec.hidden_size)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


def _write_config(writer: GGUFWriter, spec: ProbeSpec) -> None:
    writer.add_name(f"pabench probe {spec.preset}")
    writer.add_context_length(spec.max_context_tokens)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(spec.mlp_size)
    writer.add_head_count(spec.num_q_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(_RMS_EPS)
    writer.add_vocab_size(spec.vocab_size)


def _write_tokenizer(writer: GGUFWriter, spec: ProbeSpec) -> None:
    """A unigram tokenizer with one piece a word: the one kind of llama.cpp's that takes whole words as they are."""
    from gguf import TokenType

    special = {**dict.fromkeys(SPECIAL_WORDS, TokenType.CONTROL), UNK: TokenType.UNKNOWN}
    ids = range(spec.vocab_size)
    writer.add_tokenizer_model("t5")
    writer.add_token_list([SPECIAL_WORDS.get(token) or _SPACE + Codec.word(token) for token in ids])
    writer.add_token_scores([-1.0] * spec.vocab_size)
    writer.add_token_types([special.get(token, TokenType.NORMAL) for token in ids])
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_bos_token_id(SEP)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")

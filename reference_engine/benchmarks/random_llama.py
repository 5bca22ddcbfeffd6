"""A Llama of random weights, as a Hugging Face folder that any engine can serve: its words are noise, its speed is not.

Its tokenizer is word level and knows the words that pabench makes text prompts of, so a prompt of 512 words has 512
tokens for every engine, and each generated token is a word of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from pabench.engines.wording import COMMON_WORDS
from pabench.errors import EXIT_OK, PabenchError, UsageError
from reference_engine.config import DTYPES

_SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")
_STD = 0.02
_LOGIT_STD = 3.0  # of a text that varies: the best token leads by about half a nat


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama. `window`: it is a Mistral then.

    `tied`: input and output embedding are one tensor, and all weights so small that the text means and moves little.
    Else each layer changes what it is given, and the next token hangs on all before it: a text that varies.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int = 32_000
    head_dim: int = 64
    max_positions: int = 4096
    window: int | None = None
    tied: bool = True

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name of each tensor of the checkpoint -> its shape."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "input_layernorm": (self.hidden,), "post_attention_layernorm": (self.hidden,),
            "self_attn.q_proj": (q, self.hidden), "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden), "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.mlp, self.hidden), "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        head = {} if self.tied else {"lm_head.weight": (self.vocab, self.hidden)}
        return shapes | {"model.norm.weight": (self.hidden,)} | head

    def std(self, name: str) -> float:
        """Standard deviation of the weights of a tensor."""
        if self.tied:
            return _STD
        if "embed" in name:
            return 1.0
        inputs = self.tensors[name][1]
        return float((_LOGIT_STD if "lm_head" in name else 1.0) / inputs**0.5)

    @property
    def num_parameters(self) -> int:
        """Numbers in the checkpoint."""
        return sum(torch.Size(shape).numel() for shape in self.tensors.values())


SIZES = {
    "2M": LlamaShape(hidden=192, layers=3, heads=6, kv_heads=2, mlp=384, vocab=2500, head_dim=32, tied=False),
    "5M": LlamaShape(hidden=320, layers=4, heads=5, kv_heads=1, mlp=864, vocab=4_000),
    "0.1B": LlamaShape(hidden=768, layers=12, heads=12, kv_heads=4, mlp=2048),
    "0.5B": LlamaShape(hidden=1280, layers=24, heads=20, kv_heads=4, mlp=4096),
}


def build_random_llama(shape: LlamaShape, out: Path, dtype: str = "bfloat16", seed: int = 0) -> None:
    """Write the model to the folder `out` (made if missing). The same arguments give the same weights."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.ones(size, dtype=getattr(torch, dtype)) if len(size) == 1
        else torch.empty(size).normal_(std=shape.std(name), generator=rng).to(getattr(torch, dtype))
        for name, size in shape.tensors.items()
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        _tokenizer(shape.vocab).save(str(out / "tokenizer.json"))
        for name, content in _json_files(shape, dtype).items():
            (out / name).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write the model to {out}: {error.strerror or error}") from None


def _json_files(shape: LlamaShape, dtype: str) -> dict[str, dict[str, Any]]:
    kind = "llama" if shape.window is None else "mistral"
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config: dict[str, Any] = {
        "architectures": [f"{kind.title()}ForCausalLM"], "model_type": kind, "dtype": dtype, "torch_dtype": dtype,
        "hidden_size": shape.hidden, "intermediate_size": shape.mlp, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab, "max_position_embeddings": shape.max_positions, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": shape.tied, **ids,
    }
    config |= {"attention_bias": False, "mlp_bias": False} if shape.window is None else {"sliding_window": shape.window}
    names = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), _SPECIAL, strict=True))
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, **ids},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
            "model_max_length": shape.max_positions, **names,
        },
    }


def _tokenizer(vocab: int) -> Tokenizer:
    words = [*_SPECIAL, *COMMON_WORDS]
    words += [f"w{token}" for token in range(len(words), vocab)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=_SPECIAL[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    p = argparse.ArgumentParser(prog="python -m reference_engine.benchmarks.random_llama", description=__doc__)
    p.add_argument("--size", choices=sorted(SIZES), required=True, help="about so many parameters")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the weights")
    args = p.parse_args(argv)
    try:
        build_random_llama(SIZES[args.size], args.out, args.dtype)
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{args.out}: {SIZES[args.size].num_parameters:,} parameters in {args.dtype}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

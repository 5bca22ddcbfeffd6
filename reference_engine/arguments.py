"""The command line's flags: one for each switch of `EngineConfig`, under vLLM's name where vLLM has one."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from pabench.errors import UsageError
from reference_engine.config import CHOICES, DTYPES, EngineConfig
from reference_engine.model.families import check_draft_model, read_model_config

_DEFAULTS = {f.name: f.default for f in fields(EngineConfig)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="pabench serve", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="An OpenAI-compatible engine with a paged or a contiguous KV cache.",
        epilog="Example: pabench serve --model probe --kv paged --block-size 16 --num-blocks 256 --port 8000",
    )
    _add_server_flags(p.add_argument_group("server"))
    _add_model_flags(p.add_argument_group("model"))
    _add_memory_flags(p.add_argument_group("KV cache"))
    _add_scheduling_flags(p.add_argument_group("scheduling"))
    speculation = p.add_argument_group("speculative decoding")
    _switch(speculation, "--speculation", "speculation", "who guesses the next tokens")
    _switch(speculation, "--num-speculative-tokens", "num_speculative_tokens", "guesses that a step verifies", type=int)
    _switch(speculation, "--draft-model", "draft_model", "folder of the model that guesses", type=Path)
    watching = p.add_argument_group("watching")
    watching.add_argument("--trace", type=Path, help="new file that records which sequence owns which block, by step")
    _switch(watching, "--check-integrity", "check_integrity", "check all books after every step (slow)",
            action="store_true")
    return p


def _switch(group: argparse._ArgumentGroup, flag: str, name: str, text: str, **options: Any) -> None:
    """A flag for the field `name` of EngineConfig, with the default and the choices that it has there."""
    if name in CHOICES:
        options["choices"] = CHOICES[name]
    group.add_argument(flag, dest=name, default=_DEFAULTS[name], help=text, **options)


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on")
    group.add_argument("--port", type=int, default=8000, help="port to listen on")
    group.add_argument("--served-model-name", help="name that clients ask for; default: the folder's name")


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    group.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of weights and activations")
    group.add_argument("--device", default="cpu", help="torch device")
    group.add_argument("--threads", type=int,
                       help="CPU threads that torch computes with; default: OMP_NUM_THREADS, else 1")
    group.add_argument("--max-model-len", type=int, help="longest prompt plus output, tokens; default: the model's own")
    _switch(group, "--weight-dtype", "weight_dtype", "of the weights, where not --dtype")
    _switch(group, "--attention-backend", "attention_backend",
            "attention kernels; auto: numba on a CPU, triton on cuda, torch on any other device")
    _switch(group, "--enforce-eager", "enforce_eager", "no CUDA graphs on a GPU, no layers compiled whole on a CPU",
            action="store_true")


def _add_memory_flags(group: argparse._ArgumentGroup) -> None:
    _switch(group, "--kv", "kv", "how sequences get KV memory")
    _switch(group, "--reservation", "reservation", "what a contiguous cache reserves: the longest sequence, the next "
            "power of two, or what the request will need (oracle)")
    _switch(group, "--block-size", "block_size", "slots (tokens) in a block", type=int)
    _switch(group, "--num-blocks", "num_blocks", "blocks in the KV cache, allocated once", type=int)
    _switch(group, "--kv-cache-dtype", "kv_dtype", "of keys and values; auto: as --dtype")
    _switch(group, "--enable-prefix-caching", "prefix_caching", "find computed blocks again (paged)",
            action=argparse.BooleanOptionalAction)
    _switch(group, "--preemption-mode", "preemption", "what happens to a sequence when blocks run out")
    _switch(group, "--num-swap-blocks", "num_swap_blocks", "host blocks, for --preemption-mode swap", type=int)


def _add_scheduling_flags(group: argparse._ArgumentGroup) -> None:
    _switch(group, "--max-num-seqs", "max_num_seqs", "sequences that run at once", type=int)
    _switch(group, "--max-num-batched-tokens", "max_num_batched_tokens", "tokens in one step", type=int)
    _switch(group, "--batching", "batching", "let requests in at every step, or batch by batch")
    _switch(group, "--enable-chunked-prefill", "chunked_prefill", "prompts in pieces, beside decodes",
            action=argparse.BooleanOptionalAction)
    _switch(group, "--scheduling-policy", "policy", "who goes first")


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The switches that a command line asks for. Raises UsageError for what cannot be with its model."""
    model = read_model_config(args.model)
    longest = model.max_position_embeddings
    given = {f.name: getattr(args, f.name) for f in fields(EngineConfig)}
    config = EngineConfig(**given | {"max_model_len": longest if args.max_model_len is None else args.max_model_len})
    if config.max_model_len > longest:
        raise UsageError(f"--max-model-len is {config.max_model_len}, the model goes to {longest} tokens")
    if config.draft_model is not None:
        check_draft_model(config.draft_model, model.vocab_size, config.max_model_len)
    return config


def describe(config: EngineConfig) -> str:
    """All mechanisms that are on, in one line."""
    c = config
    parts = [f"{c.kv} KV cache" + (f" (reservation {c.reservation})" if c.kv == "contiguous" else ""),
             f"{c.num_blocks} blocks of {c.block_size} tokens"]
    parts += ["prefix caching"] * c.caches_prefixes
    swap = f" to {c.num_swap_blocks} host blocks" if c.preemption == "swap" else ""
    parts += [f"{c.batching} batching", *["chunked prefill"] * c.chunked_prefill, c.policy,
              f"preemption by {c.preemption}{swap}"]
    if c.speculation != "off":
        guesser = f" ({c.draft_model})" if c.draft_model is not None else ""
        parts.append(f"speculation by {c.speculation}{guesser}, {c.num_speculative_tokens} tokens")
    parts.append(f"attention in {c.attention_backend}")
    parts += ["eager"] * c.enforce_eager
    parts += [f"{what} {dtype}" for what, dtype in (("KV", c.kv_dtype), ("weights", c.weight_dtype)) if dtype != "auto"]
    return ", ".join(parts + ["integrity checks"] * c.check_integrity)

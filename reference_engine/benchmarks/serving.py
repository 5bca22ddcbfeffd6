"""Models to measure on, and a loop that serves requests in process and notes what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pabench.probe import build_checkpoint, preset
from reference_engine.benchmarks.random_llama import SIZES, LlamaShape, build_random_llama
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import Transformer
from reference_engine.scheduling.sequence import Request, SamplingParams
from reference_engine.serving.tokenizer import Tokenizer

_MAX_LEN = 2048


@dataclass(frozen=True, slots=True)
class Job:
    """One request; it comes when `at_step` steps have been made, or when nothing else is left to do."""

    prompt: tuple[int, ...]
    params: SamplingParams
    at_step: int = 0
    priority: int = 0


@dataclass(slots=True)
class Served:
    """What it came to. Times in seconds; `requests[i]` answers `jobs[i]`."""

    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    output_tokens: int = 0
    peak_blocks: int = 0         # owned at once, each counted once however many share it
    held: float = 0.0            # sequences running, mean over steps
    answers: list[list[int]] = field(default_factory=list)              # tokens of choice 0 of each request
    latency_s: dict[int, float] = field(default_factory=dict)           # request id -> arrival to last token
    gaps_s: dict[int, list[float]] = field(default_factory=dict)        # request id -> between tokens of its choice 0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole time."""
        return self.output_tokens / self.seconds

    def prompt_tokens_computed(self, recomputed: int) -> float:
        """Those not found in the prefix cache, and those computed again after a preemption."""
        return recomputed + sum(len(request.prompt) - request.num_cached_tokens for request in self.requests)


def serve(engine: Engine, jobs: Sequence[Job]) -> Served:
    """Serve all jobs, which stand in the order in which they come."""
    result, coming, last = Served(), list(reversed(jobs)), dict[int, float]()
    answers: dict[int, list[int]] = {}
    begun = time.perf_counter()
    while coming or engine.has_work:
        while coming and (coming[-1].at_step <= result.steps or not engine.has_work):
            job = coming.pop()
            result.requests.append(engine.add(job.prompt, job.params, priority=job.priority))
        outputs = engine.step()
        now = time.perf_counter()
        result.steps += 1
        result.held += len(engine.scheduler.running)
        result.peak_blocks = max(result.peak_blocks, engine.allocator.num_blocks - engine.allocator.num_free_blocks)
        result.output_tokens += len(outputs)
        for request, token in outputs:
            if token.index == 0:
                if request.id in last:
                    result.gaps_s.setdefault(request.id, []).append(now - last[request.id])
                last[request.id] = now
                answers.setdefault(request.id, []).append(token.token_id)
            result.latency_s[request.id] = time.monotonic() - request.arrival_s
    result.seconds = time.perf_counter() - begun
    result.held /= result.steps
    result.answers = [answers[request.id] for request in result.requests]
    return result


class Bench:
    """Models, made and loaded once, and sizes. `scale` multiplies the numbers of requests."""

    def __init__(self, folder: Path, scale: float = 1.0) -> None:
        self.folder, self.scale = folder, scale
        self._loaded: dict[tuple[Path, str, str], tuple[Transformer, Tokenizer]] = {}

    def count(self, number: int) -> int:
        """So many requests, scaled; at least two."""
        return max(2, round(number * self.scale))

    def probe(self, name: str = "tiny") -> Path:
        """Folder of a KV probe."""
        return self._made(name, lambda out: build_checkpoint(preset(name), out))

    def llama(self, **changes: Any) -> Path:
        """Folder of a random Llama of about 5 M parameters, or one that differs from it so."""
        shape: LlamaShape = replace(SIZES["5M"], **changes)
        name = "-".join(["llama", *(f"{key}{value}" for key, value in changes.items())])
        return self._made(name, lambda out: build_random_llama(shape, out, "float32"))

    def _made(self, name: str, make: Any) -> Path:
        if not (self.folder / name).is_dir():
            make(self.folder / name)
        return self.folder / name

    def model(self, folder: Path, weight_dtype: str = "auto", dtype: str = "float32") -> tuple[Transformer, Tokenizer]:
        """A loaded model. Engines only read it, so they may share it."""
        key = (folder, weight_dtype, dtype)
        if key not in self._loaded:
            model = load_model(folder, getattr(torch, dtype), torch.device("cpu"), _MAX_LEN, weight_dtype)
            self._loaded[key] = (model, Tokenizer(folder))
        return self._loaded[key]

    def engine(self, folder: Path, *, dtype: str = "float32", **config: Any) -> Engine:
        """A fresh engine on the model in `folder`."""
        switches = EngineConfig(**{"max_model_len": 1024, "num_blocks": 1024} | config)
        return Engine(*self.model(folder, switches.weight_dtype, dtype), switches)


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    """Exactly so many tokens, the likeliest ones."""
    return SamplingParams(**{"max_tokens": max_tokens, "ignore_eos": True} | more)


def words(rng: np.random.Generator, count: int, vocab: int = 4000) -> tuple[int, ...]:
    """A prompt of random tokens."""
    return tuple(rng.integers(4, vocab, count).tolist())


def chat_lengths(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens as in workloads/sharegpt-mini.toml."""
    prompts = np.clip(np.rint(rng.gamma(0.25, 48 / 0.25, count)), 5, 476).astype(int)
    outputs = np.clip(np.rint(rng.exponential(100, count)), 4, 480 - prompts).astype(int)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))

"""The engine: add requests, step until nothing is left, read tokens. Synchronous, knows no HTTP and no threads."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import NamedTuple

import torch

from pabench.errors import UsageError
from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.pool import KVPool
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import LlamaModel
from reference_engine.runner import Runner
from reference_engine.sampling.sampler import Sampler, choice_seed
from reference_engine.scheduling.scheduler import Scheduler, Step
from reference_engine.scheduling.sequence import Request, SamplingParams, Sequence, TokenLogprobs, TokenOutput
from reference_engine.serving.metrics import EngineStats, Snapshot
from reference_engine.serving.tokenizer import Tokenizer


class StepOutput(NamedTuple):
    """One token of one request."""

    request: Request
    output: TokenOutput


def build_allocator(config: EngineConfig) -> Allocator:
    """The allocator that the config names."""
    if config.kv == "contiguous":
        return ContiguousAllocator(config.num_blocks, config.block_size, config.max_model_len)
    return PagedAllocator(config.num_blocks, config.block_size)


class Engine:
    """Scheduler, model, sampler and text, one step at a time."""

    def __init__(self, model: LlamaModel, tokenizer: Tokenizer, config: EngineConfig) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.allocator = build_allocator(config)
        self.pool = KVPool(model.config, config.num_blocks, config.block_size, model.dtype, model.device)
        self.scheduler = Scheduler(config, self.allocator)
        self.runner = Runner(model, self.pool, self.allocator)
        self.sampler = Sampler(model.config.eos_token_ids)
        self.stats = EngineStats()
        self.vocab_size = model.config.vocab_size

    @classmethod
    def from_folder(
        cls, folder: Path, config: EngineConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Engine:
        """An engine for a Hugging Face folder."""
        model = load_model(folder, dtype, torch.device(device), config.max_model_len)
        return cls(model, Tokenizer(folder), config)

    def add(self, prompt: tuple[int, ...], params: SamplingParams, *, arrival_s: float | None = None) -> Request:
        """Queue a request. Raises UsageError, and queues nothing, when it is empty or could never be served."""
        request = self.prepare(prompt, params, arrival_s=arrival_s)
        self.enqueue(request)
        return request

    def prepare(self, prompt: tuple[int, ...], params: SamplingParams, *, arrival_s: float | None = None) -> Request:
        """Check a request without queueing it. Touches no state of the engine, so any thread may call it."""
        if not prompt:
            raise UsageError("the prompt has no tokens, expected at least one")
        if (bad := next((t for t in prompt if not 0 <= t < self.vocab_size), None)) is not None:
            raise UsageError(f"the prompt holds token id {bad}, this model has ids 0 to {self.vocab_size - 1}")
        if reason := self.scheduler.reason_never_to_fit(len(prompt), params.max_tokens, params.n):
            raise UsageError(reason)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        return Request(prompt, params, seed, time.monotonic() if arrival_s is None else arrival_s)

    def enqueue(self, request: Request) -> None:
        """Queue a request that `prepare` has checked."""
        first = self._new_sequence(request, 0)
        first.forks_due = request.params.n - 1
        self.scheduler.add(request)

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        text = self.tokenizer.stream(request.params.stop, include_stop=request.params.include_stop_str_in_output)
        seq = Sequence(request, index, list(request.prompt), choice_seed(request.seed, index), text)
        request.sequences.append(seq)
        return seq

    def abort(self, request: Request) -> None:
        """End a request and free what it holds; it gives no more output."""
        self.scheduler.abort(request)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_unfinished

    def step(self) -> list[StepOutput]:
        """One forward pass; the tokens it made, at most one of each sequence."""
        step = self.scheduler.schedule()
        if not step.sequences:
            return []
        if self.config.check_integrity:
            self._check_writes(step)
        logits = self.runner.run(step)
        ready = self._mark_computed(step)
        rows, seqs = self._fork(ready)
        if len(seqs) > len(ready):
            logits = logits[rows]
        sampled = self.sampler.sample(logits, seqs)
        now = time.monotonic()
        outputs = [
            StepOutput(seq.request, self._take(seq, token, logprobs, now))
            for seq, token, logprobs in zip(seqs, sampled.token_ids, sampled.logprobs, strict=True)
        ]
        if self.config.check_integrity:
            self.scheduler.check_integrity()
        return outputs

    def _check_writes(self, step: Step) -> None:
        for seq, num_new in zip(step.sequences, step.num_new, strict=True):
            self.allocator.check_writable(seq.id, seq.num_computed, seq.num_computed + num_new)

    def _mark_computed(self, step: Step) -> list[Sequence]:
        """Book what the step has written. Returns the sequences that get a token."""
        for seq, num_new in zip(step.sequences, step.num_new, strict=True):
            seq.num_computed += num_new
        return [seq for seq in step.sequences if seq.num_computed == len(seq.tokens)]

    def _fork(self, ready: list[Sequence]) -> tuple[list[int], list[Sequence]]:
        """Fork what is due behind a prompt. Returns (row of the logits, sequence) of every token to sample."""
        rows, seqs = [], []
        for row, seq in enumerate(ready):
            family = [seq]
            for index in range(1, 1 + seq.forks_due):
                child = self._new_sequence(seq.request, index)
                self.pool.copy_blocks(self.scheduler.fork(seq, child))
                family.append(child)
            rows += [row] * len(family)
            seqs += family
        return rows, seqs

    def _take(self, seq: Sequence, token: int, logprobs: TokenLogprobs | None, now: float) -> TokenOutput:
        """Append a token to its sequence; end the sequence if that was its last."""
        seq.tokens.append(token)
        self.stats.count_token(seq, now)
        text, finish, stop = self._judge(seq, token)
        if finish is not None:
            seq.request.sequences.remove(seq)
            self.scheduler.finish(seq)
        return TokenOutput(seq.index, token, text, logprobs, finish, stop)

    def _judge(self, seq: Sequence, token: int) -> tuple[str, str | None, int | str | None]:
        """(text, finish reason, stop reason) of a token just appended."""
        params, made = seq.request.params, seq.num_output_tokens
        may_stop = made >= params.min_tokens
        text, stop = seq.text.push(token, may_stop=may_stop)
        if stop is not None:
            return text, "stop", stop
        if may_stop and token in params.stop_token_ids:
            return text + seq.text.flush(), "stop", token
        if may_stop and not params.ignore_eos and token in self.sampler.eos_token_ids:
            return text + seq.text.flush(), "stop", None
        if made >= params.max_tokens:
            return text + seq.text.flush(), "length", None
        return text, None, None

    def snapshot(self) -> Snapshot:
        """State and counters at this moment, between two steps."""
        return Snapshot(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_preemptions=self.scheduler.num_preemptions,
            kv_usage=1 - self.allocator.num_free_blocks / self.allocator.num_blocks,
            split=self.allocator.split(self.scheduler.written()),
            stats=self.stats.copy(),
        )

"""The engine: add requests, step until nothing is left, read tokens. Synchronous, knows no HTTP and no threads."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pabench.errors import UsageError
from reference_engine.block_trace import BlockTrace
from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import BlockCopy
from reference_engine.memory.build import build_allocator
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import Transformer
from reference_engine.model.vision import Vision, read_vision
from reference_engine.runner import Runner, attention_backend
from reference_engine.sampling.beam import BeamSearch, reason_not_to_search
from reference_engine.sampling.sampler import Sampler, choice_seed
from reference_engine.sampling.speculative import DraftProposer, build_proposer
from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import (
    PromptImage,
    Request,
    SamplingParams,
    Sequence,
    Status,
    TokenLogprobs,
    TokenOutput,
)
from reference_engine.scheduling.step import Step
from reference_engine.serving.metrics import EngineStats, Snapshot
from reference_engine.serving.tokenizer import Tokenizer


class StepOutput(NamedTuple):
    """One token of one request."""

    request: Request
    output: TokenOutput


class Engine:
    """Scheduler, model, sampler and text, one step at a time."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, config: EngineConfig, vision: Vision | None = None
    ) -> None:
        config = replace(config, attention_backend=attention_backend(config.attention_backend, model.device))
        self.config, self.tokenizer, self.vision = config, tokenizer, vision
        self.allocator = build_allocator(config)
        self.runner = Runner.build(model, config, self.allocator)
        self.pool = self.runner.pool
        self.sampler = Sampler(model.config.eos_token_ids)
        self.proposer = build_proposer(config, model, self.allocator, self.sampler)
        self.scheduler = Scheduler(config, self.allocator, window=self._window())
        self.beams = BeamSearch(self.scheduler, self._copy_blocks, tokenizer, self.sampler.eos_token_ids)
        self.stats = EngineStats()
        self.trace: BlockTrace | None = None  # of who owns which block, where one is wanted
        self.vocab_size = model.config.vocab_size

    @property
    def _runners(self) -> list[Runner]:
        """One of each model. All pools lie under the same block tables."""
        return [self.runner, self.proposer.runner] if isinstance(self.proposer, DraftProposer) else [self.runner]

    def _window(self) -> int | None:
        """What every layer of every model looks back at most; None: some look back at everything."""
        windows = [runner.model.config.uniform_window for runner in self._runners]
        return max((w for w in windows if w is not None), default=None) if None not in windows else None

    @classmethod
    def from_folder(
        cls, folder: Path, config: EngineConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Engine:
        """An engine for a Hugging Face folder."""
        tokenizer = Tokenizer(folder)  # first: what is wrong with it is known before any weight is read
        on = torch.device(device)
        attention_backend(config.attention_backend, on)  # and so is whether it has attention on this device
        model = load_model(folder, dtype, on, config.max_model_len, config.weight_dtype)
        return cls(model, tokenizer, config, read_vision(folder, dtype, on))

    def add(
        self, prompt: tuple[int, ...], params: SamplingParams, *, arrival_s: float | None = None, priority: int = 0,
        cache_salt: str | None = None, images: tuple[PromptImage, ...] = (),
    ) -> Request:
        """Queue a request. Raises UsageError, and queues nothing, when it is empty or could never be served."""
        request = self.prepare(prompt, params, arrival_s=arrival_s, priority=priority, cache_salt=cache_salt,
                               images=images)
        self.enqueue(request)
        return request

    def prepare(
        self, prompt: tuple[int, ...], params: SamplingParams, *, arrival_s: float | None = None, priority: int = 0,
        cache_salt: str | None = None, images: tuple[PromptImage, ...] = (),
    ) -> Request:
        """Check a request without queueing it. Touches no state of the engine, so any thread may call it."""
        if not prompt:
            raise UsageError("the prompt has no tokens, expected at least one")
        if reason := self.scheduler.reason_never_to_fit(len(prompt), params.max_tokens, params.num_branches):
            raise UsageError(reason)  # first: so the ids looked through below are never millions
        if (bad := next((t for t in prompt if not 0 <= t < self.vocab_size), None)) is not None:
            raise UsageError(f"the prompt holds token id {bad}, this model has ids 0 to {self.vocab_size - 1}")
        if reason := reason_not_to_search(params, self.vocab_size, self.sampler.eos_token_ids):
            raise UsageError(reason)
        return Request(
            prompt, params,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            arrival_s=time.monotonic() if arrival_s is None else arrival_s,
            priority=priority if self.config.policy == "priority" else 0,
            cache_salt=cache_salt,
            images=images,
        )

    def enqueue(self, request: Request) -> None:
        """Queue a request that `prepare` has checked."""
        first = self._new_sequence(request, 0)
        first.forks_due = request.params.num_branches - 1
        self.scheduler.add(request)

    def _new_sequence(self, request: Request, index: int) -> Sequence:
        text = self.tokenizer.stream(request.params.stop, include_stop=request.params.include_stop_str_in_output)
        seq = Sequence(request, index, list(request.prompt), choice_seed(request.seed, index), text)
        request.sequences.append(seq)
        return seq

    def abort(self, request: Request) -> None:
        """End a request and free what it holds; it gives no more output."""
        self.stats.count_abort(request)
        self.scheduler.abort(request)
        if self.trace is not None:
            self.trace.look()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_unfinished

    def step(self) -> list[StepOutput]:
        """One forward pass, and the tokens that it made."""
        step = self.scheduler.schedule()
        if not step.sequences:
            return []
        self.stats.count_admissions(step.admitted)
        if self.proposer is not None:
            self.proposer.propose(step)
            self.stats.count_drafts(step.drafts)
        if self.config.check_integrity:
            self._check_writes(step)
        num_logits = [self._num_logits(seq, count) for seq, count in zip(step.sequences, step.num_rows, strict=True)]
        logits = self.runner.run(step, num_logits)
        self.scheduler.complete(step)
        rows, seqs = self._rows_to_sample(step, num_logits, logits)
        if rows != list(range(len(logits))):
            logits = logits[rows]
        outputs = self._sample(logits, seqs, step.drafts) if seqs else []
        outputs += self._advance_beams()
        for seq in step.sequences:
            if seq.id in step.draft_room and seq.status is Status.RUNNING:
                self.scheduler.roll_back(seq)
        if self.config.check_integrity:
            self.scheduler.check_integrity()
        if self.trace is not None:
            self.trace.end_step()
        return outputs

    def _check_writes(self, step: Step) -> None:
        for seq, count in zip(step.sequences, step.num_rows, strict=True):
            self.allocator.check_writable(seq.id, seq.num_computed, seq.num_computed + count)

    def _num_logits(self, seq: Sequence, count: int) -> int:
        """How many of a sequence's next `count` positions have something to say: those of a prompt to be told, or
        those from its last token on.
        """
        end = seq.num_computed + count
        told = len(seq.request.prompt_logprobs)  # the entry of position p comes from the logits of p - 1
        if seq.request.params.prompt_logprobs is not None and told < seq.num_prompt_tokens:
            return max(end - max(seq.num_computed, told - 1), 0)
        return max(end - seq.num_tokens + 1, 0)

    def _rows_to_sample(
        self, step: Step, num_logits: list[int], logits: torch.Tensor
    ) -> tuple[list[int], list[Sequence]]:
        """(row of the logits, sequence) of every token to sample, those behind drafts after the one before the drafts.

        Forks what is due behind a prompt.
        """
        rows: list[int] = []
        seqs: list[Sequence] = []
        end = 0
        for seq, count in zip(step.sequences, num_logits, strict=True):
            end += count
            if seq.request.params.prompt_logprobs is not None and count:
                self._tell_prompt(seq, logits[end - count : end])
            if seq.num_computed == seq.num_tokens and seq.request.params.beam_width:
                self.beams.offer(seq, logits[end - 1])
            elif seq.num_computed == seq.num_tokens:
                tried = len(step.drafts.get(seq.id, ()))
                family = [seq, *self._fork_due(seq)] if seq.forks_due else [seq] * (1 + tried)
                rows += range(end - 1 - tried, end) if tried else [end - 1] * len(family)
                seqs += family
        return rows, seqs

    def _tell_prompt(self, seq: Sequence, logits: torch.Tensor) -> None:
        """Log-probabilities of the prompt's tokens behind the last len(logits) computed positions."""
        told, first = seq.request.prompt_logprobs, seq.num_computed - len(logits)
        if not told:
            told.append(None)
        asked = [p for p in range(first, seq.num_computed) if len(told) <= p + 1 < seq.num_prompt_tokens]
        if asked:
            tokens = torch.tensor([seq.tokens[p + 1] for p in asked], device=logits.device)
            rows = logits[asked[0] - first : asked[-1] - first + 1]
            told += self.sampler.logprobs(rows, tokens, [seq.request.params.prompt_logprobs] * len(asked))

    def _fork_due(self, parent: Sequence) -> list[Sequence]:
        """The other choices of a request, whose prompt `parent` has computed."""
        children = []
        for index in range(1, 1 + parent.forks_due):
            child = self._new_sequence(parent.request, index)
            self._copy_blocks(self.scheduler.fork_due(parent, child))
            children.append(child)
        return children

    def _copy_blocks(self, copies: list[BlockCopy]) -> None:
        """Copies that cannot wait for the next step."""
        for runner in self._runners:
            runner.pool.copy_blocks(copies)

    def _sample(
        self, logits: torch.Tensor, seqs: list[Sequence], drafts: Mapping[int, list[int]]
    ) -> list[StepOutput]:
        """A token for each row that stands behind no draft, or behind drafts that are all accepted."""
        behind: list[list[int]] = [[]] * len(seqs)  # the drafts that a row stands behind
        for i in range(1, len(seqs) if drafts else 0):
            if seqs[i] is seqs[i - 1]:
                behind[i] = drafts[seqs[i].id][: len(behind[i - 1]) + 1]
        sampled = self.sampler.sample(logits, seqs, behind if drafts else None)
        now, accepted = time.monotonic(), False
        outputs = []
        for seq, before, token, logprobs in zip(seqs, behind, sampled.token_ids, sampled.logprobs, strict=True):
            if before and not accepted:
                continue
            seq.num_computed += bool(before)
            agrees = drafts.get(seq.id, [])[len(before) : len(before) + 1] == [token]
            self.stats.accepted_draft_tokens += agrees
            outputs.append(StepOutput(seq.request, self._take(seq, token, logprobs, now)))
            accepted = agrees and seq.status is Status.RUNNING
        return outputs

    def _advance_beams(self) -> list[StepOutput]:
        """Whole answers of the requests whose beam search this step has ended."""
        ended = self.beams.advance()
        now = time.monotonic()
        for request, outputs in ended:
            self.stats.count_answer(request, outputs, now)
        return [StepOutput(request, output) for request, outputs in ended for output in outputs]

    def _take(self, seq: Sequence, token: int, logprobs: TokenLogprobs | None, now: float) -> TokenOutput:
        """Append a token to its sequence; end the sequence if that was its last."""
        seq.append(token)
        self.stats.count_token(seq, now)
        text, finish, stop = self._judge(seq, token)
        if finish is not None:
            seq.request.sequences.remove(seq)
            self.scheduler.finish(seq)
            self.stats.count_finish(seq.request, finish, now)
        return TokenOutput(seq.index, token, text, logprobs, finish, stop)

    def _judge(self, seq: Sequence, token: int) -> tuple[str, str | None, int | str | None]:
        """(text, finish reason, stop reason) of a token just appended."""
        params, made, stream = seq.request.params, seq.num_output_tokens, seq.text
        assert stream is not None
        may_stop = made >= params.min_tokens
        text, stop = stream.push(token, may_stop=may_stop)
        if stop is not None:
            return text, "stop", stop
        if may_stop and token in params.stop_token_ids:
            return text + stream.flush(), "stop", token
        if may_stop and not params.ignore_eos and token in self.sampler.eos_token_ids:
            return text + stream.flush(), "stop", None
        if made >= params.max_tokens:
            return text + stream.flush(), "length", None
        return text, None, None

    def snapshot(self) -> Snapshot:
        """State and counters at this moment, between two steps."""
        return Snapshot(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_swapped=sum(seq.is_swapped for seq in self.scheduler.waiting),
            num_idle_blocks=len(self.allocator.idle_blocks),
            num_host_blocks=self.scheduler.swap.num_used_blocks if self.scheduler.swap is not None else 0,
            scheduler=copy.copy(self.scheduler.stats),
            kv_usage=1 - self.allocator.num_free_blocks / self.allocator.num_blocks,
            split=self.allocator.split(self.scheduler.written()),
            stats=self.stats.copy(),
        )

"""What a client asked for, and the sequences that answer it. Plain state: no behaviour of scheduler or sampler."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum, auto

from reference_engine.serving.tokenizer import TextStream

_seq_ids = itertools.count()
_request_ids = itertools.count()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. temperature 0 is greedy; top_k 0 is off; logprobs None is off."""

    max_tokens: int
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None  # how many alternatives to tell beside the chosen token
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural, of the model's own distribution) of the chosen token and of the likeliest ones."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), likeliest first


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one choice. `text` may be empty while a character or a stop string is incomplete."""

    index: int
    token_id: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: str | None         # "stop" | "length" | None: goes on
    stop_reason: int | str | None     # the stop token id or stop string that matched


class Status(Enum):
    """Where a sequence is."""

    WAITING = auto()   # holds no blocks
    RUNNING = auto()   # holds blocks
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Request:
    """One prompt with its sampling parameters; answered by `params.n` sequences."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int                     # of the request: params.seed, or drawn
    arrival_s: float              # monotonic
    id: int = field(default_factory=lambda: next(_request_ids))
    sequences: list[Sequence] = field(default_factory=list)  # not finished yet

    @property
    def final_tokens(self) -> int:
        """Slots that one sequence needs in the end: the last token is never fed back."""
        return len(self.prompt) + self.params.max_tokens - 1


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice in the making. `tokens` is prompt and output; those before `num_computed` have their KV written.

    The first sequence of a request computes the prompt for all: `forks_due` more are forked from it then.
    """

    request: Request
    index: int
    tokens: list[int]
    seed: int                # of this choice
    text: TextStream
    forks_due: int = 0
    num_computed: int = 0
    num_slots: int = 0       # slots it holds, those of its first tokens
    status: Status = Status.WAITING
    last_token_s: float = 0.0  # monotonic, when the last token was made; 0.0 before the first
    id: int = field(default_factory=lambda: next(_seq_ids))

    @property
    def order(self) -> tuple[int, int]:
        """First come, first served: by request, then by choice."""
        return self.request.id, self.index

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def width(self) -> int:
        """Sequences that it is or is going to be: what it counts against max_num_seqs."""
        return 1 + self.forks_due

"""What a client asked for, and the sequences that answer it. Plain state: no behaviour of scheduler or sampler."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the simulation, which has neither, starts without torch
    import torch

    from reference_engine.sampling.ngram import NgramIndex
    from reference_engine.sampling.steering import Steering
    from reference_engine.serving.tokenizer import TextStream

TokenIds = tuple[int, ...] | range  # a simulation knows only how many there are

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
    prompt_logprobs: int | None = None  # the same for each token of the prompt
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    beam_width: int = 0  # 0: no beam search. The n best of so many beams answer
    length_penalty: float = 1.0  # a beam scores cumulative log-probability / length ** length_penalty
    early_stopping: bool = False  # end as soon as beam_width beams have ended, though an open one might beat them
    presence_penalty: float = 0.0    # off the logit of each token that the output holds
    frequency_penalty: float = 0.0   # off the logit, times how often the output holds the token
    repetition_penalty: float = 1.0  # divides a positive logit, multiplies a negative one, of tokens seen before
    min_p: float = 0.0               # drawn tokens are at least so likely, as a share of the likeliest
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    allowed_token_ids: frozenset[int] | None = None  # None: all
    adjusts_logits: bool = field(init=False)  # whether anything but the model has a say in its logits

    def __post_init__(self) -> None:
        adjusts = self.penalises or self.min_tokens > 0 or self.logit_bias or self.allowed_token_ids is not None
        object.__setattr__(self, "adjusts_logits", bool(adjusts))

    @property
    def penalises(self) -> bool:
        """Whether a token's chance depends on those before it in other ways than through the model."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def num_branches(self) -> int:
        """Sequences that grow at once behind the prompt."""
        return self.beam_width or self.n


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural, of the model's own distribution) of the chosen token and of the likeliest ones."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), likeliest first
    rank: int = 1                       # of the chosen token: 1 + how many are likelier


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One token of one choice. `text` may be empty while a character or a stop string is incomplete."""

    index: int
    token_id: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: str | None         # "stop" | "length" | None: goes on
    stop_reason: int | str | None     # the stop token id or stop string that matched


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """An image in a prompt, as the model takes it. `key` stands for all of it, pixels and shape."""

    start: int                # the position of its first token
    embeddings: torch.Tensor  # [num_tokens, hidden_size], in place of its tokens'
    key: bytes

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + len(self.embeddings)


class Status(Enum):
    """Where a sequence is."""

    WAITING = auto()   # holds no blocks (on the device: it may be swapped out)
    RUNNING = auto()   # holds blocks
    FINISHED = auto()


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A beam that has ended. `score` is its cumulative log-probability / number of tokens ** length_penalty."""

    tokens: list[int]  # generated, the ending one included
    logprobs: list[TokenLogprobs]  # of each, where they were asked for
    score: float
    finish_reason: str
    stop_reason: int | None


@dataclass(slots=True, eq=False)
class Request:
    """One prompt with its sampling parameters; answered by `params.num_branches` sequences."""

    prompt: TokenIds
    params: SamplingParams
    seed: int                     # of the request: params.seed, or drawn
    arrival_s: float              # monotonic
    priority: int = 0             # lower goes first, where the policy looks at it
    cache_salt: str | None = None  # requests share cached blocks only with those of the same salt
    images: tuple[PromptImage, ...] = ()
    id: int = field(default_factory=lambda: next(_request_ids))
    sequences: list[Sequence] = field(default_factory=list)  # not finished yet
    is_admitted: bool = False     # it has been let in once
    num_cached_tokens: int = 0    # of the prompt, found in the prefix cache when it was first admitted
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # entry 0 is None: nothing comes before
    steering: Steering | None = None  # of its lists of token ids, once logits were changed by them
    hypotheses: list[Hypothesis] = field(default_factory=list)  # beams that have ended, best first

    @property
    def final_tokens(self) -> int:
        """Slots that one sequence needs in the end: the last token is never fed back."""
        return len(self.prompt) + self.params.max_tokens - 1

    @property
    def may_read_cache(self) -> bool:
        """Whether cached blocks will do: log-probabilities of the prompt need all of it computed."""
        return self.params.prompt_logprobs is None


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice in the making. `tokens` is prompt and output; those before `num_computed` have their KV written.

    The first sequence of a request computes the prompt for all: `forks_due` more are forked from it then.
    """

    request: Request
    index: int
    tokens: list[int]
    seed: int                 # of this choice
    text: TextStream | None = None
    forks_due: int = 0
    num_tokens: int = 0       # length of `tokens`, which a simulation does not have
    num_computed: int = 0
    num_drafted: int = 0      # those before it have their KV written in the draft model's pool too, where there is one
    num_slots: int = 0        # slots it may write, those of its first tokens
    final_tokens: int = 0     # slots it needs in the end
    status: Status = Status.WAITING
    is_swapped: bool = False  # its KV lies in host memory
    num_lost: int = 0         # tokens whose KV it gave up when it was preempted
    keys: list[bytes] = field(default_factory=list)  # prefix cache keys of its full blocks, as far as they were needed
    num_published: int = 0    # blocks that the prefix cache knows
    cum_logprob: float = 0.0  # of a beam
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of a beam's output, where they were asked for
    offer: tuple[tuple[int, float], ...] | None = None  # a beam's next tokens and log-probabilities, likeliest first
    ngrams: NgramIndex | None = None  # of its tokens, once drafts were asked of them
    last_token_s: float = 0.0  # monotonic, when the last token was made; 0.0 before the first
    id: int = field(default_factory=lambda: next(_seq_ids))
    order: tuple[int, int, int] = field(init=False)  # who goes first: by priority, then by arrival, then by choice

    def __post_init__(self) -> None:
        self.num_tokens = self.num_tokens or len(self.tokens)
        self.final_tokens = self.request.final_tokens
        self.order = (self.request.priority, self.request.id, self.index)

    def append(self, token: int) -> None:
        """One more token."""
        self.tokens.append(token)
        self.num_tokens += 1

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - len(self.request.prompt)

    @property
    def width(self) -> int:
        """Sequences that it is or is going to be: what it counts against max_num_seqs."""
        return 1 + self.forks_due

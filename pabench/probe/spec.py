"""Geometry of a KV probe: which token ids mean what, and which attention head carries which bit.

A probe with `num_layers` L and `num_q_heads` H has a vocabulary of 2^((L-1)*H): bit `b` of an answer is read by
exactly one query head of one lookup layer (layers 1 … L-1; layer 0 only prepares the keys).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pabench.errors import UsageError

SEP = 0   # first token of every prompt, the sink of lookups that find nothing; also the tokenizer's BOS
EOS = 1
PAD = 2
UNK = 3
IMAGE = 4  # one for each token of a picture, where the probe sees pictures
FIRST_SALT = 16      # ids below are never in a prompt's body: engines treat BOS, EOS, UNK, PAD specially
FIRST_RING = 272     # the same in every preset, so that one prompt serves them all
HARD_BETA = 12.0     # logit of one bit: a wrong bit costs twice that in nats
MLP_SIZE = 64     # as small as engines take it
SOFT_BETA = 1.0      # an exact answer has log-probability -bits * ln(1 + e^-2): any error of a value moves it
SLOW_THETA = 2e-5    # RoPE frequencies (radians a token) that do not turn within the longest context


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """One probe. Codes are sign vectors: `token_code_dims` for token ids, `salt_code_dims` for salts.

    `beta` is the logit of one bit. A hard probe (12) is certain of every token; a soft one (1) says the same under
    greedy decoding, and its log-probabilities show how exact the values were that it read.

    `window`: each layer sees so many positions, the current one included; None: all. Neither a salt at position 1 nor
    a sink at position 0 can be seen from behind it, so a windowed probe has none (`salt_code_dims` 0, and the ids of
    salts are tokens like others): its lookups match the token alone.

    `full_layers`: of a probe with a window, the layers that see everything all the same.

    `mlp_size`: width of the MLPs. They are all zero and change no answer; wide ones are weights that each step has to
    read, as it has a real model's.

    `picture_side`: patches a side of the pictures that it sees, each one a token; 0: it sees none.
    """

    preset: str
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    token_code_dims: int
    salt_code_dims: int
    num_salts: int
    max_context_tokens: int = 4096
    beta: float = HARD_BETA
    window: int | None = None
    mlp_size: int = MLP_SIZE
    picture_side: int = 0
    full_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_layers", tuple(self.full_layers))  # JSON has lists
        problems = []
        if self.num_q_heads % self.num_kv_heads:
            problems.append(f"{self.num_q_heads} query heads do not divide by {self.num_kv_heads} KV heads")
        if self.num_q_heads < 2:
            problems.append("layer 0 needs two query heads: one for the previous token, one for the salt")
        if self.vocab_size < 2 * FIRST_RING:
            problems.append(f"{self.bits} bits leave no tokens for rings: (num_layers - 1) * num_q_heads must be >= 10")
        if self.num_salts > FIRST_RING - FIRST_SALT:
            problems.append(f"{self.num_salts} salts, at most {FIRST_RING - FIRST_SALT} have an id")
        if self.window is not None and (self.window < 2 or self.salt_code_dims):
            problems.append(f"a window of {self.window} tokens and salt codes of {self.salt_code_dims} dims: a window "
                            "is 2 tokens at least, and leaves no salt to be seen")
        if self.full_layers and (self.window is None or not set(self.full_layers) < set(range(self.num_layers))):
            problems.append(f"layers {list(self.full_layers)} are to see everything, with window {self.window}: some "
                            f"of {self.num_layers} layers, and not all, of a probe with a window")
        needed = self.token_code_dims + (0 if self.window is not None else self.salt_code_dims + 1)
        if len(self.slow_dims) < needed:
            problems.append(
                f"lookup keys need {needed} slow dims, head_dim {self.head_dim} with rope_theta {self.rope_theta:g} "
                f"has {len(self.slow_dims)}: raise rope_theta or shorten the codes"
            )
        if problems:
            raise UsageError(f"probe preset {self.preset!r} cannot be built: {'; '.join(problems)}")

    @property
    def is_soft(self) -> bool:
        """Whether log-probabilities of answers tell how exact they are."""
        return self.beta < HARD_BETA / 2

    def as_json(self) -> dict[str, Any]:
        """For probe.json. Without what older folders do not speak of, where this probe has none of it."""
        unsaid: dict[str, Any] = {"window": None, "mlp_size": MLP_SIZE, "picture_side": 0, "full_layers": []}
        told = asdict(self) | {"full_layers": list(self.full_layers)}
        return {name: value for name, value in told.items() if name not in unsaid or value != unsaid[name]}

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.num_q_heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def bits(self) -> int:
        """Bits of a token id: one for each query head of each lookup layer."""
        return (self.num_layers - 1) * self.num_q_heads

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 1 << self.bits

    def mask_of(self, *, full: bool) -> int:
        """The bits of a token that are read in layers that see everything, or in those with a window."""
        return sum(1 << bit for bit in range(self.bits) if (self.head_of(bit)[0] in self.full_layers) is full)

    @property
    def picture_tokens(self) -> int:
        """Tokens that a picture stands for."""
        return self.picture_side ** 2

    @property
    def ring_ids(self) -> range:
        """Ids that may stand in a ring."""
        return range(FIRST_RING, self.vocab_size)

    @property
    def paired_ids(self) -> range:
        """Ring ids whose complement (every bit flipped) is a ring id too."""
        return range(FIRST_RING, self.vocab_size - FIRST_RING)

    @property
    def salt_ids(self) -> range:
        """Ids of the salts."""
        return range(FIRST_SALT, FIRST_SALT + self.num_salts)

    @property
    def thetas(self) -> list[float]:
        """RoPE frequency of each pair of dims (i, i + head_dim/2), radians a token; [head_dim / 2]."""
        half = self.head_dim // 2
        return [self.rope_theta ** (-i / half) for i in range(half)]

    @property
    def fast_pairs(self) -> list[int]:
        """RoPE pairs that turn: they tell positions apart."""
        return [i for i, theta in enumerate(self.thetas) if theta > SLOW_THETA]

    @property
    def slow_dims(self) -> list[int]:
        """Dims of a head that RoPE leaves alone over the longest context: they hold content."""
        half = self.head_dim // 2
        pairs = [i for i, theta in enumerate(self.thetas) if theta <= SLOW_THETA]
        return pairs + [i + half for i in pairs]

    def bit_of(self, layer: int, q_head: int) -> int:
        """Bit of the answer that query head `q_head` of lookup layer `layer` (1 … L-1) carries."""
        return (layer - 1) * self.num_q_heads + q_head

    def head_of(self, bit: int) -> tuple[int, int]:
        """(layer, query head) that carries `bit`."""
        return bit // self.num_q_heads + 1, bit % self.num_q_heads

    def kv_head_of(self, q_head: int) -> int:
        """KV head that query head `q_head` reads."""
        return q_head // self.group_size


# Code lengths, rope_theta and salts by head_dim: chosen so that the slow dims hold both codes and the sink.
_BY_HEAD_DIM = {64: (1e20, 30, 16, 60), 80: (1e18, 40, 16, 63), 96: (1e18, 48, 20, 191),
                128: (1e16, 64, 24, 256), 256: (1e16, 64, 24, 256)}


def _preset(
    name: str, layers: int, q_heads: int, kv_heads: int, head_dim: int, max_context: int = 4096,
    beta: float = HARD_BETA,
) -> ProbeSpec:
    theta, token_dims, salt_dims, salts = _BY_HEAD_DIM[head_dim]
    return ProbeSpec(name, layers, q_heads, kv_heads, head_dim, theta, token_dims, salt_dims, salts, max_context, beta)


PRESETS: dict[str, ProbeSpec] = {
    spec.preset: spec
    for spec in (
        _preset("tiny", 4, 4, 2, 64),
        _preset("gqa", 4, 4, 2, 128),
        _preset("mha", 4, 4, 4, 128),
        _preset("mqa", 4, 4, 1, 128),
        _preset("d80", 4, 4, 2, 80),
        _preset("d96", 4, 4, 2, 96),
        _preset("d256", 4, 4, 2, 256),
        _preset("long", 3, 8, 2, 128, max_context=65536),
        _preset("soft", 4, 4, 2, 128, beta=SOFT_BETA),
        # A step reads 32 MB of weights in float32, so that batches pay as they do with real models.
        replace(_preset("wide", 4, 4, 2, 64), mlp_size=2048),
        replace(_preset("vision", 4, 4, 2, 64), picture_side=4),
        # All slow dims hold the token's code: there is no salt and no sink to leave room for.
        ProbeSpec("window", 4, 4, 2, 64, 1e20, token_code_dims=48, salt_code_dims=0, num_salts=60, window=64),
        # Two of its layers look up within the window, one in everything.
        ProbeSpec("mixed", 4, 4, 2, 64, 1e20, token_code_dims=48, salt_code_dims=0, num_salts=60, window=64,
                  full_layers=(0, 2)),
    )
}


def preset(name: str) -> ProbeSpec:
    """The preset called `name`. Raises UsageError that lists the known ones."""
    if name not in PRESETS:
        raise UsageError(f"unknown probe preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]

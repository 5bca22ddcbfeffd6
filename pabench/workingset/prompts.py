"""Prompts of a working set: rings on the KV probe, so that answers are verified, else random ids or words.

Two kinds: prompts that have nothing in common, and prompts that share exactly their first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pabench.engines.doctor import Examination
from pabench.engines.wording import COMMON_WORDS, PLAIN_VOCAB_SIZE
from pabench.load.prompts import draw_probe_prompts
from pabench.probe import FIRST_RING, FIRST_SALT, ProbePrompt, ProbeSpec, Ring

MIN_TOKENS = 32      # of a prompt: long enough that what all rings begin with does not count
TAIL_TOKENS = 9      # behind a shared beginning: a ring of eight that closes
_TAIL_IDS = 256      # ids, the lowest ones, that stand in tails alone


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent, of about `tokens` tokens, and what must come back: None where that is not known."""

    sent: tuple[int, ...] | str
    tokens: int
    oracle: ProbePrompt | None = None


class Prompts:
    """Draws prompts for one engine. Same seed and same calls, same prompts."""

    def __init__(self, examination: Examination, seed: int) -> None:
        self._spec = examination.probe
        self._as_text = "token_ids" not in examination.facts.capabilities
        self._rng = np.random.default_rng(seed)
        self._salt = 0

    def distinct(self, lengths: Sequence[int], *, at_once: bool = False) -> list[Prompt]:
        """Prompts of `lengths` tokens without a common beginning; `at_once`: nor a common token, if they suffice."""
        if self._spec is None:
            return [self._plain(self._draw(self._ids, length)) for length in lengths]
        users = list(range(len(lengths))) if at_once else [0] * len(lengths)
        rings, _ = draw_probe_prompts(self._spec, self._rng, lengths, users)
        return [_of_ring(ring) for ring in rings]

    def beginning(self, tokens: int) -> tuple[int, ...]:
        """A beginning of `tokens` ids that prompts can share."""
        if self._spec is None:
            return self._draw(self._ids[_TAIL_IDS:], tokens)
        self._salt = int(self._rng.choice(self._spec.salt_ids))
        return self._draw(self._spec.ring_ids[_TAIL_IDS:], tokens)

    def sharing(self, beginning: tuple[int, ...], shared: int) -> Prompt:
        """A prompt that has exactly its first `shared` tokens in common with the others of `beginning`."""
        if self._spec is None:
            return self._plain(beginning[:shared] + self._draw(self._ids[:_TAIL_IDS], TAIL_TOKENS))
        ring = self._draw_ring(self._spec)
        return _of_ring(Ring(ring, self._salt, lead=beginning[: max(0, shared - 2)]))  # behind SEP and the salt

    def _draw_ring(self, spec: ProbeSpec) -> tuple[int, ...]:
        picked = self._rng.permutation(_TAIL_IDS)[: TAIL_TOKENS - 1] + FIRST_RING
        return tuple(picked.tolist())

    def _draw(self, ids: range, count: int) -> tuple[int, ...]:
        return tuple(self._rng.integers(ids.start, ids.stop, size=count).tolist())

    @property
    def _ids(self) -> range:
        """Ids that any model has."""
        return range(FIRST_SALT, PLAIN_VOCAB_SIZE)

    def _plain(self, ids: tuple[int, ...]) -> Prompt:
        if not self._as_text:
            return Prompt(ids, len(ids))
        # Tails and beginnings have words of their own, as they have ids.
        half = len(COMMON_WORDS) // 2
        words = (COMMON_WORDS[i % half + (half if i >= self._ids[_TAIL_IDS] else 0)] for i in ids)
        return Prompt(" ".join(words), len(ids))


def _of_ring(ring: Ring) -> Prompt:
    return Prompt(ring.prompt, len(ring.prompt), ring)

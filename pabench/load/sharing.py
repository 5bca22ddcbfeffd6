"""What prompts have in common: prefixes that many begin with, and sessions whose every turn begins with the one before.

On the probe all of it is verified. A shared prefix is part of each ring from a place on that is drawn, so that answers
read its slots as well as their own. A turn goes on round the same ring: its prompt is the last one's, the answer that
is right, and the next tokens of the ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pabench.errors import UsageError
from pabench.load.lengths import DrawnLaw, TraceLaw
from pabench.load.prompts import draw_texts
from pabench.load.workload import Session, Workload
from pabench.probe import Fork, ProbeSpec, Ring

Prompt = Ring | Fork | tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session. `prompt_tokens` includes what is shared."""

    session: int
    turn: int
    prompt: Prompt
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What groups of prompts begin with. `own_ids`: what is left for the prompts' own tokens."""

    length: int                    # tokens
    groups: tuple[Prompt, ...]     # tokens or words of each
    salts: tuple[int, ...]         # on the probe: of each group, whose prompts have to share it
    weights: tuple[float, ...]     # chance of each group
    own_ids: range | None


def prefix_length(workload: Workload) -> int:
    """Tokens that each prompt begins with and shares; 0: none."""
    shared = workload.shared_prefix
    return 0 if shared is None else max(1, round(shared.tokens * workload.scale))


def draw_prefixes(workload: Workload, spec: ProbeSpec | None, rng: np.random.Generator) -> Prefixes | None:
    """The prefixes of a workload, None where it has none. Raises UsageError where the probe has too few tokens."""
    shared, length = workload.shared_prefix, prefix_length(workload)
    if shared is None:
        return None
    weights = 1.0 / np.arange(1, shared.groups + 1) ** shared.zipf
    chances = tuple((weights / weights.sum()).tolist())
    if spec is None or workload.prompt == "text":
        return Prefixes(length, tuple(draw_texts(spec, rng, [length] * shared.groups)), (), chances, None)
    half = len(spec.ring_ids) // 2
    if length > half:
        raise UsageError(f"a shared prefix of {length} tokens does not fit probe {spec.preset!r}: expected at most "
                         f"{half}; lower shared_prefix.tokens or scale, or serve the preset 'long'")
    reserved = spec.ring_ids[: min(shared.groups * length, half)]
    apart = shared.groups * length <= half
    order = rng.permutation(len(reserved)) + reserved.start
    groups = [order[at * length : (at + 1) * length] if apart else rng.permutation(order)[:length]
              for at in range(shared.groups)]
    salts = rng.permutation(spec.salt_ids).tolist()
    return Prefixes(length, tuple(tuple(group.tolist()) for group in groups),
                    tuple(salts[at % len(salts)] for at in range(shared.groups)), chances,
                    spec.ring_ids[len(reserved):])


def put_before(prefixes: Prefixes, rng: np.random.Generator, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt behind the prefix of a group."""
    chosen = rng.choice(len(prefixes.groups), size=len(prompts), p=prefixes.weights)
    read = rng.integers(0, prefixes.length + 1, size=len(prompts))
    return [_behind(prefixes, int(group), prompt, int(last))
            for group, prompt, last in zip(chosen, prompts, read, strict=True)]


def _behind(prefixes: Prefixes, group: int, prompt: Prompt, last: int) -> Prompt:
    """`last`: so many tokens at the end of the prefix belong to the ring, and are read by the answer."""
    shared = prefixes.groups[group]
    if isinstance(prompt, Ring):
        assert isinstance(shared, tuple), "prefixes of the probe are ids"
        at = prefixes.length - last
        length = None if prompt.prompt_len is None else prompt.prompt_len + prefixes.length
        return Ring(shared[at:] + prompt.tokens, prefixes.salts[group], length, shared[:at])
    return _joined(shared, prompt)


def _joined(before: Prompt, behind: Prompt) -> Prompt:
    if isinstance(before, tuple) and isinstance(behind, tuple):
        return before + behind
    return f"{before} {behind}"


def draw_turns(session: Session | None, rng: np.random.Generator, count: int, num_requests: int | None) -> list[int]:
    """How many turns each of up to `count` sessions has, `num_requests` in all; 1 each where there are no sessions."""
    if session is None:
        return [1] * count
    turns: list[int] = []
    left = num_requests
    for drawn in _whole(session.turns, rng, count):
        if left is not None and left <= 0:
            break
        turns.append(drawn if left is None else min(drawn, left))
        left = None if left is None else left - turns[-1]
    return turns


def take_turns(
    workload: Workload, spec: ProbeSpec | None, rng: np.random.Generator, firsts: Sequence[Turn],
    turns: Sequence[int], limit: int | None,
) -> tuple[list[Turn], int]:
    """All turns of sessions that begin with `firsts`, session by session, and how many are left out.

    `limit`: tokens of prompt and output that the engine, or the workload, allows.
    """
    session = workload.session
    if session is None:
        return list(firsts), 0
    law = workload.output_tokens
    assert not isinstance(law, TraceLaw), "a workload with sessions and a trace is refused"
    low, high = law.bounds(workload.scale)
    found: list[Turn] = []
    for now, count in zip(firsts, turns, strict=True):
        found.append(now)
        new = _whole(session.turn_tokens, rng, count - 1, workload.scale)
        outputs = law.draw(rng, count - 1) * workload.scale
        for more, output in zip(new, np.clip(np.rint(outputs), low, high).astype(int).tolist(), strict=True):
            length = now.prompt_tokens + now.output_tokens + more
            if limit is not None and length + output > limit:
                break
            now = Turn(now.session, now.turn + 1, _go_on(now, spec, rng, length), length, output)
            found.append(now)
    return found, sum(turns) - len(found)


def _go_on(turn: Turn, spec: ProbeSpec | None, rng: np.random.Generator, length: int) -> Prompt:
    """The next turn's prompt. What a model that is not the probe answers is not known: other words stand for it."""
    if isinstance(turn.prompt, Ring):
        return replace(turn.prompt, prompt_len=length)
    return _joined(turn.prompt, draw_texts(spec, rng, [length - turn.prompt_tokens])[0])


def _whole(law: DrawnLaw, rng: np.random.Generator, count: int, scale: float = 1.0) -> list[int]:
    low, high = law.bounds(scale)
    drawn: list[int] = np.clip(np.rint(law.draw(rng, count) * scale), max(low, 1), high).astype(np.int64).tolist()
    return drawn

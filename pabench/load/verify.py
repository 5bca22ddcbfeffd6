"""Every answer of a probe workload against its oracle, after the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan

import numpy as np
from numpy.typing import NDArray

from pabench.engines.base import Choice
from pabench.load.connection import Exchange
from pabench.load.schedule import ScheduledRequest
from pabench.probe import Fork, ProbeSpec, Ring, check_answer, diagnose

MAX_DIAGNOSES = 1000


@dataclass(frozen=True, slots=True)
class Verification:
    """Tokens over all samples of one answer, and the first sample that went wrong."""

    verified: int
    wrong: int
    wrong_choice: Choice | None


def verify_choices(oracle: Ring | Fork, choices: Sequence[Choice]) -> Verification:
    """Check each sample. Behind a wrong token nothing counts as verified."""
    verified = wrong = 0
    wrong_choice = None
    for choice in choices:
        check = check_answer(oracle, choice.token_ids or ())
        verified += check.verified
        wrong += check.wrong
        if check.wrong and wrong_choice is None:
            wrong_choice = choice
    return Verification(verified, wrong, wrong_choice)


def verify_beams(oracle: Ring | Fork, choices: Sequence[Choice]) -> Verification:
    """Check the beams that are certain: the best one of a ring, and of a fork the two best, one round each branch.

    Nothing else is nearly as likely: a beam that comes back to the fork reads its own tokens there, and stays on its
    branch. What the others say, further down, is not known: their tokens count as neither right nor wrong.
    """
    verified = wrong = 0
    wrong_choice = None
    taken: set[int | None] = set()
    for choice in sorted(choices, key=lambda choice: choice.index)[: 1 if isinstance(oracle, Ring) else 2]:
        ids = choice.token_ids or []
        if isinstance(oracle, Ring):
            expected: Sequence[int] = oracle.expected(len(ids))
        else:
            branch = oracle.branch(ids)
            expected = () if branch is None or branch in taken else _round(oracle, branch, len(ids))
            taken.add(branch)
        right = next((at for at, (is_, should) in enumerate(zip(ids, expected, strict=False)) if is_ != should),
                     len(expected))
        verified += right
        wrong += len(ids) - right
        if right < len(ids) and wrong_choice is None:
            wrong_choice = choice
    return Verification(verified, wrong, wrong_choice)


def _round(fork: Fork, branch: int, count: int) -> list[int]:
    """The first `count` tokens of an answer that goes round one branch of a fork."""
    way = (*fork.branches[branch], fork.fork)
    return [way[at % len(way)] for at in range(count)]


class Diagnoses:
    """What is said of wrong answers, of the first MAX_DIAGNOSES of a run: an engine that gets all wrong would else
    take hours. The prompts that were in flight at the same time are the suspects, named by their request ids.
    """

    def __init__(
        self, scheduled: Sequence[ScheduledRequest], exchanges: Mapping[int, Exchange], spec: ProbeSpec,
        block_size: int | None,
    ) -> None:
        self._scheduled, self._exchanges, self._spec, self._block_size = scheduled, exchanges, spec, block_size
        self._left = MAX_DIAGNOSES

    def of(self, index: int, ids: Sequence[int]) -> str | None:
        """The diagnosis, as JSON, of request `index`, whose wrong sample has `ids`; None where there is nothing to say,
        or enough has been said.
        """
        oracle = self._scheduled[index].oracle
        if oracle is None or not self._left:
            return None
        self._left -= 1
        suspects = [self._scheduled[other] for other in self._beside(index)]
        prompts = [(one.oracle, one.name) for one in suspects if one.oracle is not None]
        diagnosis = diagnose(self._spec, oracle, ids, block_size=self._block_size,
                             others=[prompt for prompt, _ in prompts], names=[name for _, name in prompts])
        return None if diagnosis is None else diagnosis.to_json()

    def _beside(self, index: int) -> list[int]:
        """Who was in flight at once. One that ended before may have left its blocks: a second's grace."""
        mine = self._exchanges[index]
        if mine.sent_s is None or mine.end_s is None:
            return []
        sent_s, end_s = self._times_s
        beside = np.flatnonzero((sent_s <= mine.end_s) & (mine.sent_s <= end_s + 1.0))
        return [other for other in self._order[beside].tolist() if other != index]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.fromiter(self._exchanges, dtype=np.int64, count=len(self._exchanges))

    @cached_property
    def _times_s(self) -> NDArray[np.float64]:
        """When each was sent, and ended: `[2, num_exchanges]`; NaN, which is beside nothing, where it was not."""
        return np.asarray([[nan if at_s is None else at_s for at_s in (one.sent_s, one.end_s)]
                           for one in self._exchanges.values()], dtype=np.float64).reshape(-1, 2).T

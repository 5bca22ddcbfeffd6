"""Every answer of a probe workload against its oracle, after the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pabench.engines.base import Choice
from pabench.load.records import RequestRecord
from pabench.load.schedule import ScheduledRequest
from pabench.probe import Fork, ProbeSpec, Ring, check_answer, diagnose


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


def diagnose_wrong(
    records: Sequence[RequestRecord], scheduled: Sequence[ScheduledRequest], wrong: dict[int, list[int]],
    spec: ProbeSpec, block_size: int | None,
) -> None:
    """Fill `diagnosis` of the records in `wrong` (index -> ids of the wrong sample).

    The prompts that were in flight at the same time are the suspects, named by their request ids.
    """
    for index, ids in wrong.items():
        oracle = scheduled[index].oracle
        if oracle is None:
            continue
        suspects = [other for other in records if other.index != index and _overlap(records[index], other)]
        prompts = [(prompt, other.request_id) for other in suspects
                   if (prompt := scheduled[other.index].oracle) is not None]
        diagnosis = diagnose(
            spec, oracle, ids, block_size=block_size,
            others=[prompt for prompt, _ in prompts], names=[name for _, name in prompts],
        )
        if diagnosis is not None:
            records[index].diagnosis = diagnosis.to_json()


def _overlap(a: RequestRecord, b: RequestRecord) -> bool:
    """Whether both were in flight at once. One that ended before may have left its blocks: a second's grace."""
    if a.sent_s is None or a.end_s is None or b.sent_s is None or b.end_s is None:
        return False
    return b.sent_s <= a.end_s and a.sent_s <= b.end_s + 1.0

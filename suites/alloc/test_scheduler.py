"""A scheduler, step by step: what it lets compute can be computed, and all that it accepts ends."""

from __future__ import annotations

import pytest

from pabench.conformance.alloc import AllocatorUnderTest
from pabench.conformance.alloc.checks import check_reads, text
from pabench.conformance.alloc.schedule import Moment, Planned, Schedule, Wanted
from pabench.conformance.failure import fail


def is_sane(schedule: Schedule) -> None:
    """Each step can be computed as it stands, and leaves everyone with their own."""
    for moment in schedule:
        if moment.computed:
            check_reads(schedule.unfinished.values(), schedule.memory, schedule.prefixes)
        if moment.plan is None:
            continue
        _check_batch(schedule, moment)
        for planned, wanted in moment.chosen:
            if wanted is None:
                fail("only requests that are unfinished are scheduled", f"R{planned.request} is",
                     hint="it has ended, was aborted, or was refused")
            _check_lengths(schedule, planned, wanted)
        if schedule.stands_still:
            return  # another requirement's


def _check_batch(schedule: Schedule, moment: Moment) -> None:
    assert moment.plan is not None, "a step"
    numbers = [planned.request for planned in moment.plan.scheduled]
    if len(set(numbers)) < len(numbers):
        fail("a request stands in a step once", f"the step has {', '.join(f'R{number}' for number in numbers)}")
    if both := sorted(set(numbers) & set(moment.plan.preempted)):
        fail("what a step preempts, it does not compute", f"R{both[0]} is scheduled and preempted in one step",
             hint="the victim was scheduled before, and has to be taken out of the batch again")
    limits, tokens = schedule.limits, sum(planned.num_new for planned in moment.plan.scheduled)
    if tokens > limits.max_num_batched_tokens:
        fail(f"a step computes at most {limits.max_num_batched_tokens} tokens", f"{tokens}")
    if len(numbers) > limits.max_num_seqs:
        fail(f"a step has at most {limits.max_num_seqs} sequences", f"{len(numbers)}")


def _check_lengths(schedule: Schedule, planned: Planned, wanted: Wanted) -> None:
    if planned.num_new < 1:
        fail(f"{wanted.name} has at least one token to compute", f"{planned.num_new}, behind {planned.num_computed} of "
             f"{wanted.num_tokens}", hint="a prompt that is found whole still needs its last token computed")
    stop = planned.num_computed + planned.num_new
    if stop > wanted.num_tokens:
        fail(f"computed + scheduled <= the {wanted.num_tokens} tokens of {wanted.name}",
             f"{planned.num_computed} + {planned.num_new} = {stop}",
             hint="what is scheduled is to be counted behind what was found, after a preemption too")
    needed = -(-stop // schedule.pool.block_size)
    blocks = wanted.table[planned.num_computed // schedule.pool.block_size : needed]
    if len(wanted.table) < needed or None in blocks:
        fail(f"{wanted.name} has blocks for its {stop} tokens: {needed} of {schedule.pool.block_size}",
             f"it has {text(wanted.table)}")


@pytest.mark.requirement("alloc/schedule-sanity")
@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_schedule_sanity(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Budgets and pools so small that prompts come in pieces and sequences are preempted; prompts that are found."""
    allocator.every_schedule(is_sane, caching=caching)


def lives(schedule: Schedule) -> None:
    """What can be served is accepted and ends; what cannot is refused at once."""
    for moment in schedule:
        if moment.wanted is not None:
            _check_admission(schedule, moment.wanted, moment.refusal)
        elif schedule.stands_still:
            if schedule.idle_steps:
                fail("a step computes something while a request is unfinished",
                     f"{schedule.idle_steps} steps in a row chose nothing, while {schedule.waiting_text}",
                     hint="who is first in the queue has to fit in the end: preempt, or refuse for good")
            fail(f"all that was accepted ends within {schedule.longest_drain} steps",
                 f"after them {schedule.waiting_text}",
                 hint="two take turns in preempting each other: let the first in order go on")


def _check_admission(schedule: Schedule, wanted: Wanted, refusal: str | None) -> None:
    asks = f"{wanted.name} with {wanted.num_prompt} + {wanted.final_tokens - wanted.num_prompt} tokens"
    if schedule.fits(wanted) and refusal is not None:
        fail(f"{asks} fits into an idle engine and is accepted", f"refused: {refusal}")
    if not schedule.fits(wanted) and refusal is None:
        fail(f"{asks} can never be served and is refused at once", "it was accepted",
             hint="it would wait at the head of the queue for ever")


@pytest.mark.requirement("alloc/liveness")
@pytest.mark.parametrize("caching", [True, False], ids=["cached", "uncached"])
def test_liveness(allocator: AllocatorUnderTest, caching: bool) -> None:
    """Requests of every size up to and beyond what the pool holds, more than can run at once; some leave."""
    allocator.every_schedule(lives, caching=caching)


def serves_in_order(schedule: Schedule) -> None:
    """Whenever a request has its first token, so has every one of its length that came before it."""
    for moment in schedule:
        if schedule.stands_still:
            return  # another requirement's
        if not moment.computed:
            continue
        waits: dict[tuple[int, int], Wanted] = {}  # lengths -> the first to come that has no token yet
        for wanted in schedule.unfinished.values():
            lengths = wanted.num_prompt, wanted.final_tokens
            if wanted.num_tokens == wanted.num_prompt and wanted.num_computed < wanted.num_prompt:
                waits.setdefault(lengths, wanted)
            elif lengths in waits:
                fail(f"{waits[lengths].name}, which came first, has its first token before {wanted.name} of the same "
                     f"length, or with it", f"{wanted.name} has one, {waits[lengths].name} has none",
                     hint="who is admitted is the first in the queue, who gives way the last to have come")


@pytest.mark.requirement("alloc/first-come-first-served")
def test_first_come_first_served(allocator: AllocatorUnderTest) -> None:
    """Requests of one length, more than can run at once. Without a cache, whose hits make some of them shorter."""
    allocator.every_schedule(serves_in_order, caching=False, equal=True)

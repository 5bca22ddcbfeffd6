"""The schedule: every request of a run, with its absolute start, drawn before the run from one seed.

Open arrivals: `intended_s` is the request's start on the run's clock, whatever the engine does. Closed arrivals: each
user has a queue of its own, and the next request is intended for the end of the last one plus the think time.
Lengths, arrivals, prompts, cuts, priorities come from generators of their own, so that changing one leaves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pabench.engines.base import EngineFacts, GenerationRequest
from pabench.errors import UsageError
from pabench.load.arrivals import Arrivals, ClosedArrivals, GammaArrivals, OpenArrivals, TraceArrivals
from pabench.load.lengths import LengthLaw, TraceLaw
from pabench.load.prompts import (
    MIN_PROMPT_TOKENS,
    Isolation,
    draw_fork_prompts,
    draw_probe_prompts,
    draw_texts,
    told_apart,
)
from pabench.load.sharing import (
    Prefixes,
    Prompt,
    Turn,
    draw_prefixes,
    draw_turns,
    prefix_length,
    put_before,
    take_turns,
)
from pabench.load.traced import Leads, draw_leads
from pabench.load.workload import Workload
from pabench.probe import Codec, Fork, ProbeSpec, Ring
from pabench.traces import Trace, read_trace

_WARMUP_OUTPUT_TOKENS = 8
_USER_GAP_S = 0.0005  # between the first requests of two users: nobody sends a thousand at once


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request to come. `intended_s` is None for a closed loop, where the answers set the pace."""

    index: int
    user: int | None
    intended_s: float | None
    request: GenerationRequest
    prompt_tokens: int                 # for words of a model that is not the probe: the number of words
    oracle: Ring | Fork | None = None  # None: nothing to verify
    cancel_after_tokens: int | None = None
    session: int = 0                   # requests of one follow one another
    turn: int = 0                      # 0: the session's first, which arrives as the workload says

    @property
    def name(self) -> str:
        """What records call it."""
        return self.request.request_id or str(self.index)


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests that follow one another: each waits for the end of the one before.

    `first_s`: when the first is due, seconds from the run's start.
    """

    first_s: float
    requests: Sequence[ScheduledRequest]


@dataclass(frozen=True)
class Schedule:
    """All requests of a run, in order, and those that warm the engine up before."""

    requests: tuple[ScheduledRequest, ...]
    warmups: tuple[ScheduledRequest, ...]
    isolation: Isolation    # how a foreign token is told from the request's own
    num_clipped: int        # requests made shorter than the workload says by the engine's context
    num_left_out: int = 0   # turns of sessions whose prompts would have outgrown the context

    def lanes(self) -> list[Lane]:
        """All requests, those together that follow one another: of a user, of a session, or one each; by `first_s`."""
        return put_into_lanes(self.requests)


def put_into_lanes(requests: Sequence[ScheduledRequest], at_least_s: float = 0.0) -> list[Lane]:
    """`Schedule.lanes` of some of its requests. Those that wait for no arrival begin from `at_least_s` on, in turn."""
    def of(request: ScheduledRequest) -> int:
        return request.session if request.user is None else request.user

    lanes, num_waiting = [], 0
    for _, found in groupby(sorted(requests, key=of), key=of):
        together = tuple(found)
        first_s = together[0].intended_s
        if first_s is None:
            first_s = at_least_s + num_waiting * _USER_GAP_S
            num_waiting += 1
        lanes.append(Lane(first_s, together))
    return sorted(lanes, key=lambda lane: lane.first_s)


def plan(workload: Workload, seed: int, facts: EngineFacts, spec: ProbeSpec | None, prefix: str) -> Schedule:
    """The schedule of `workload` for an engine. The same arguments give the same schedule.

    `prefix` starts every request id. Raises UsageError for what the engine cannot do.
    """
    check_able(workload, facts, spec)
    seeds = np.random.SeedSequence(seed).spawn(7)
    lengths, arrivals, prompts_of, cuts, warming, sharing, urgencies = (np.random.default_rng(each) for each in seeds)
    trace = None if workload.trace is None else read_trace(workload.trace, workload.trace_format)
    starts = draw_arrivals(workload, arrivals, trace)
    turns = draw_turns(workload.session, sharing, len(starts), workload.num_requests)
    prefixes = draw_prefixes(workload, spec, sharing)
    prompt_tokens, output_tokens, num_clipped = draw_lengths(
        workload, lengths, len(turns), facts.max_context_tokens, trace)
    users = share_out(workload.arrivals, output_tokens)
    leads = draw_leads(workload, spec, trace, prompt_tokens, seed)
    own_tokens = prompt_tokens if leads is None else leads.own_tokens(prompt_tokens)
    prompts, isolation = _draw_prompts(workload, spec, prompts_of, own_tokens, users, prefixes or leads)
    if prefixes is not None:
        prompts = put_before(prefixes, sharing, prompts)
    if leads is not None:
        prompts = leads.before(prompts)
    firsts = [Turn(at, 0, prompt, tokens + prefix_length(workload), output)
              for at, (prompt, tokens, output) in enumerate(zip(prompts, prompt_tokens, output_tokens, strict=True))]
    limit = _limit(workload, facts.max_context_tokens)
    all_turns, num_left_out = take_turns(workload, spec, sharing, firsts, turns, limit)
    cut = cuts.random(len(all_turns)) < workload.cancel_share
    priorities = draw_priorities(workload, urgencies, len(firsts))
    requests = tuple(
        _schedule_one(workload, facts, turn, index=i, user=None if users is None else users[turn.session],
                      intended_s=starts[turn.session] if turn.turn == 0 else None, cut=bool(cut[i]), seed=seed,
                      prefix=prefix, priority=priorities[turn.session])
        for i, turn in enumerate(all_turns)
    )
    warmups = _plan_warmups(workload, facts, spec, warming, seed, prefix, trace)
    return Schedule(requests, warmups, isolation, num_clipped, num_left_out)


def _limit(workload: Workload, max_context_tokens: int | None) -> int | None:
    """Tokens of prompt and output that one request may have; None: any number."""
    limits = [limit for limit in (workload.max_total_tokens, max_context_tokens) if limit is not None]
    return min(limits, default=None)


def check_able(workload: Workload, facts: EngineFacts, spec: ProbeSpec | None) -> None:
    """Raise UsageError when the engine cannot do what the workload asks."""
    if workload.prompt != "text" and spec is None:
        raise UsageError(
            f"workload {workload.name!r} asks for verified prompts, but the engine serves {facts.model!r}, which is "
            'not known to be a KV probe: serve one made by `pabench probe build`, or '
            'use a workload with prompt = "text"')
    if workload.prompt == "probe" and workload.temperature > 0 and spec is not None and spec.is_soft:
        raise UsageError(f"workload {workload.name!r} draws its answers (temperature {workload.temperature:g}), and "
                         f"probe {spec.preset!r} is soft, which is certain under greedy decoding alone: serve another")
    if workload.beam_width is not None and workload.prompt != "text" and spec is not None and spec.is_soft:
        raise UsageError(f"workload {workload.name!r} verifies beams, and probe {spec.preset!r} is soft: its beams are "
                         "not certain; serve another")
    if isinstance(workload.cache, float) and (facts.kv is None or facts.kv.block_size is None):
        raise UsageError(f"workload {workload.name!r} fills {workload.cache:.0%} of the cache, block by block, and the "
                         'engine does not tell the size of its blocks: state "cold" or "warm"')
    needed = {"beam": workload.beam_width is not None, "cached_tokens": workload.cache is not None, "n": workload.n > 1,
              "priority": workload.priorities is not None, "sampling": workload.temperature > 0,
              "stream": workload.cancel_share > 0}
    missing = [name for name, need in needed.items() if need and name not in facts.capabilities]
    if missing:
        raise UsageError(f"workload {workload.name!r} needs {', '.join(missing)}, which dialect {facts.dialect!r} of "
                         "this engine lacks: use another workload")


def draw_arrivals(
    workload: Workload, rng: np.random.Generator, trace: Trace | None = None
) -> list[float] | list[None]:
    """Absolute starts in seconds, from 0; None each for closed arrivals."""
    arrivals = workload.arrivals
    if isinstance(arrivals, ClosedArrivals):
        return [None] * (workload.num_requests or 0)
    if isinstance(arrivals, TraceArrivals):
        assert trace is not None, "a workload without one is refused"
        if len(trace) > 1 and not trace.arrival_s.any():
            raise UsageError(f"the trace {workload.trace} has no times: take its lengths, and arrivals of another "
                             "kind")
        starts = trace.head(workload.num_requests or len(trace)).arrival_s / arrivals.speed
        return [float(start) for start in starts if workload.duration_s is None or start < workload.duration_s]
    ends = [end for end in (workload.duration_s, arrivals.end_s) if end is not None]
    limit = workload.num_requests
    if limit is None:
        limit = _surely_enough(arrivals, min(ends))
    starts = arrivals.starts(rng, limit)
    starts = starts[starts < min(ends, default=np.inf)]
    if len(starts) == 0:
        raise UsageError(f"workload {workload.name!r}: no request falls into {min(ends, default=np.inf):g} s of "
                         f"{arrivals.text}: raise duration_s or the rate")
    return [float(start) for start in starts]


def _surely_enough(arrivals: OpenArrivals, duration_s: float) -> int:
    """Ten standard deviations more than come in that time on average; bursts spread wider."""
    mean = arrivals.expected(duration_s)
    spread = 1.0 / np.sqrt(arrivals.burstiness) if isinstance(arrivals, GammaArrivals) else 1.0
    return int(mean + 10 * max(1.0, spread) * np.sqrt(mean + 1) + 10)


def draw_lengths(
    workload: Workload, rng: np.random.Generator, count: int, max_context_tokens: int | None,
    trace: Trace | None = None,
) -> tuple[list[int], list[int], int]:
    """Prompt and output tokens of each request, and how many the engine's context made shorter."""
    traced = (None, None) if trace is None else (trace.prompt_tokens, trace.output_tokens)
    prompts = _lengths(workload.prompt_tokens, rng, count, traced[0]) * workload.scale
    outputs = _lengths(workload.output_tokens, rng, count, traced[1]) * workload.scale
    before, limit = prefix_length(workload), _limit(workload, max_context_tokens)
    least = MIN_PROMPT_TOKENS[workload.prompt] + 1 + before
    if limit is not None and limit < least:
        raise UsageError(f"workload {workload.name!r} needs a context of at least {least} tokens, the limit is {limit}")
    own, clipped = (_clip(workload, prompts, outputs, None if most is None else most - before)
                    for most in (workload.max_total_tokens, limit))
    num_clipped = int(np.count_nonzero((clipped[0] != own[0]) | (clipped[1] != own[1])))
    return clipped[0].tolist(), clipped[1].tolist(), num_clipped


def _lengths(law: LengthLaw, rng: np.random.Generator, count: int, traced: np.ndarray | None) -> np.ndarray:
    """`[count]` lengths in tokens, not yet scaled or clipped."""
    if not isinstance(law, TraceLaw):
        return law.draw(rng, count)
    assert traced is not None, "a workload without a trace is refused"
    if count > len(traced):
        raise UsageError(f"the workload has {count} requests, its trace only {len(traced)}: lower num_requests, "
                         "duration_s or the rate")
    return traced[:count].astype(np.float64)


def _clip(
    workload: Workload, prompts: np.ndarray, outputs: np.ndarray, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Whole lengths within their laws' bounds, and `prompt + output <= limit`: the output gives way first."""
    least = MIN_PROMPT_TOKENS[workload.prompt]
    low, high = workload.prompt_tokens.bounds()
    out_low, out_high = workload.output_tokens.bounds()
    if limit is not None:
        high = min(high, limit - out_low)
    high = max(high, least)
    prompt = np.clip(np.rint(prompts), min(max(low, least), high), high).astype(np.int64)
    output = np.clip(np.rint(outputs), out_low, out_high).astype(np.int64)
    if limit is not None:
        output = np.clip(output, 1, np.maximum(limit - prompt, 1))
    return prompt, output


def draw_priorities(workload: Workload, rng: np.random.Generator, count: int) -> list[int] | list[None]:
    """The priority of each of `count` sessions; None each where the workload has none."""
    if workload.priorities is None:
        return [None] * count
    shares = np.asarray([each.share for each in workload.priorities])
    chosen = rng.choice(len(shares), size=count, p=shares / shares.sum())
    return [workload.priorities[at].priority for at in chosen]


def share_out(arrivals: Arrivals, output_tokens: Sequence[int]) -> list[int] | None:
    """User of each request; None for open arrivals.

    Each request goes to the user with the least work so far (tokens, plus the mean for its wait), which is the order
    in which a common queue would be emptied: all users stay busy to the end, and the steady window is long.
    """
    if not isinstance(arrivals, ClosedArrivals):
        return None
    work = np.zeros(min(arrivals.users, len(output_tokens)))
    mean = float(np.mean(output_tokens))
    users = []
    for tokens in output_tokens:
        user = int(np.argmin(work))
        work[user] += tokens + mean
        users.append(user)
    return users


def _draw_prompts(
    workload: Workload, spec: ProbeSpec | None, rng: np.random.Generator, prompt_tokens: list[int],
    users: list[int] | None, shared: Prefixes | Leads | None = None,
) -> tuple[Sequence[Prompt], Isolation]:
    if workload.prompt == "text" or spec is None:
        return draw_texts(spec, rng, prompt_tokens), "none"
    if workload.prompt == "fork":
        forks = draw_fork_prompts(spec, rng, prompt_tokens, users)
        return forks, told_apart(spec, len(forks), users, disjoint=False)
    own_ids = None if shared is None else shared.own_ids
    rings, disjoint = draw_probe_prompts(spec, rng, prompt_tokens, users, own_ids)
    if shared is not None:  # who shares a prefix shares its salt
        return rings, "tokens" if disjoint else "chance"
    return rings, told_apart(spec, len(rings), users, disjoint)


def _schedule_one(
    workload: Workload, facts: EngineFacts, turn: Turn, *, index: int, user: int | None, intended_s: float | None,
    cut: bool, seed: int, prefix: str, priority: int | None = None,
) -> ScheduledRequest:
    prompt, num_output = turn.prompt, turn.output_tokens
    oracle = prompt if isinstance(prompt, Ring | Fork) else None
    ids = prompt.prompt if isinstance(prompt, Ring | Fork) else prompt
    by_ids = "token_ids" in facts.capabilities
    request = GenerationRequest(
        prompt=ids if isinstance(ids, str) or by_ids else Codec.encode(ids),
        max_tokens=num_output, n=workload.beam_width or workload.n, beam_width=workload.beam_width or 0,
        temperature=workload.temperature, top_p=workload.top_p,
        # A ring says the same whatever is drawn. A fork does not, nor a text.
        seed=(seed * 1_000_003 + index) % 2**31 if workload.temperature > 0 and workload.prompt != "probe" else None,
        stream="stream" in facts.capabilities and workload.beam_width is None, request_id=f"{prefix}-{index}",
        priority=priority,
    )
    return ScheduledRequest(
        index=index, user=user, intended_s=intended_s, request=request,
        prompt_tokens=turn.prompt_tokens if isinstance(ids, str) else len(ids), oracle=oracle,
        session=turn.session, turn=turn.turn,
        cancel_after_tokens=workload.cancel_after_tokens if cut and num_output > workload.cancel_after_tokens else None,
    )


def _plan_warmups(
    workload: Workload, facts: EngineFacts, spec: ProbeSpec | None, rng: np.random.Generator, seed: int, prefix: str,
    trace: Trace | None,
) -> tuple[ScheduledRequest, ...]:
    """Short requests on prompts of their own: they open connections and warm the engine, and seed no prefix cache."""
    count = workload.warmups if trace is None else min(workload.warmups, len(trace))
    if count == 0:
        return ()
    prompt_tokens, output_tokens, _ = draw_lengths(workload, rng, count, facts.max_context_tokens, trace)
    prompts, _ = _draw_prompts(workload, spec, rng, prompt_tokens, None)
    return tuple(
        _schedule_one(
            workload, facts, Turn(i, 0, prompts[i], prompt_tokens[i], min(output_tokens[i], _WARMUP_OUTPUT_TOKENS)),
            index=i, user=None, intended_s=None, cut=False, seed=seed + 1, prefix=f"{prefix}-warm",
        )
        for i in range(count)
    )

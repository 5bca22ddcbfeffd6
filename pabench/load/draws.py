"""What a schedule is drawn from: arrivals, lengths, priorities, and who sends what, each by a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pabench.errors import UsageError
from pabench.load.arrivals import Arrivals, ClosedArrivals, GammaArrivals, OpenArrivals, TraceArrivals
from pabench.load.lengths import LengthLaw, TraceLaw
from pabench.load.prompts import MIN_PROMPT_TOKENS
from pabench.load.sharing import prefix_length
from pabench.load.workload import MAX_REQUESTS, Workload
from pabench.traces import Trace


class NoArrivals(UsageError):
    """By chance no request comes in the time that there is."""


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
        raise NoArrivals(f"workload {workload.name!r}: no request falls into {min(ends, default=np.inf):g} s of "
                         f"{workload.load_text}: raise duration_s or the rate")
    return [float(start) for start in starts]


def _surely_enough(arrivals: OpenArrivals, duration_s: float) -> int:
    """Ten standard deviations more than come in that time on average; bursts spread wider. Raises UsageError where that
    is more than anybody sends.
    """
    mean = arrivals.expected(duration_s)
    if not mean <= MAX_REQUESTS:
        raise UsageError(f"{mean:.3g} requests would come in {duration_s:g} s, and a run has at most {MAX_REQUESTS:,}: "
                         "lower the rate or the duration")
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
    before, limit = prefix_length(workload), token_limit(workload, max_context_tokens)
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
    low, high = workload.prompt_tokens.bounds(workload.scale)
    out_low, out_high = workload.output_tokens.bounds(workload.scale)
    if limit is not None:
        high = min(high, limit - out_low)
    high = max(high, least)
    prompt = np.clip(np.rint(prompts), min(max(low, least), high), high).astype(np.int64)
    output = np.clip(np.rint(outputs), out_low, out_high).astype(np.int64)
    if limit is not None:
        output = np.clip(output, 1, np.maximum(limit - prompt, 1))
    return prompt, output


def token_limit(workload: Workload, max_context_tokens: int | None) -> int | None:
    """Tokens of prompt and output that one request may have; None: any number."""
    limits = [limit for limit in (workload.max_total_tokens, max_context_tokens) if limit is not None]
    return min(limits, default=None)


def draw_priorities(workload: Workload, rng: np.random.Generator, count: int) -> list[int] | list[None]:
    """The priority of each of `count` sessions; None each where the workload has none."""
    if workload.priorities is None:
        return [None] * count
    shares = np.asarray([each.share for each in workload.priorities])
    chosen = rng.choice(len(shares), size=count, p=shares / shares.sum())
    return [workload.priorities[at].priority for at in chosen]


def require_work(workload: Workload, turns: Sequence[int], trace: Trace | None) -> None:
    """Raise UsageError where the load would be smaller than its name. `turns`: of each session."""
    arrivals = workload.arrivals
    if isinstance(arrivals, TraceArrivals) and trace is not None and (workload.num_requests or 0) > len(trace):
        raise UsageError(f"num_requests is {workload.num_requests}, and the trace {workload.trace} has only "
                         f"{len(trace)} requests that come: lower it to that, or leave it out for all of them")
    if isinstance(arrivals, ClosedArrivals) and arrivals.users > len(turns):
        what = "requests" if sum(turns) == len(turns) else f"sessions ({sum(turns)} requests)"
        raise UsageError(f"{workload.load_text}, and only {len(turns)} {what} for them: raise num_requests "
                         "(--num-requests), or lower the users")


def share_out(arrivals: Arrivals, output_tokens: Sequence[int], turns: Sequence[int]) -> list[int] | None:
    """User of each session, by the output tokens of its first turn and its number of turns; None for open arrivals.

    Each goes to the user with the least work so far (tokens, plus the mean for each wait), which is the order in which
    a common queue would be emptied: all users stay busy to the end, and the steady window is long.
    """
    if not isinstance(arrivals, ClosedArrivals):
        return None
    work = np.zeros(min(arrivals.users, len(output_tokens)))
    mean = float(np.mean(output_tokens))
    users = []
    for tokens, count in zip(output_tokens, turns, strict=True):
        user = int(np.argmin(work))
        work[user] += tokens + mean + (count - 1) * 2 * mean
        users.append(user)
    return users

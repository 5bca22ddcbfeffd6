"""From a workload and a seed to the schedule of a run, drawn before it begins.

Lengths, arrivals, prompts, cuts, priorities come from generators of their own, so that changing one leaves the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pabench.engines.base import EngineFacts, GenerationRequest
from pabench.errors import UsageError
from pabench.load.draws import (
    draw_arrivals,
    draw_lengths,
    draw_priorities,
    require_work,
    share_out,
    token_limit,
)
from pabench.load.prompts import Isolation, draw_fork_prompts, draw_probe_prompts, draw_texts, told_apart
from pabench.load.schedule import Schedule, ScheduledRequest
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


def plan(
    workload: Workload, seed: int, facts: EngineFacts, spec: ProbeSpec | None, prefix: str, *, anew: bool = True
) -> Schedule:
    """The schedule of `workload` for an engine. The same arguments give the same schedule.

    `prefix` starts every request id. Raises UsageError for what the engine cannot do, and, of a run that is planned
    `anew`, for a load that would be smaller than its name: earlier versions carried such runs.
    """
    check_able(workload, facts, spec)
    seeds = np.random.SeedSequence(seed).spawn(7)
    lengths, arrivals, prompts_of, cuts, warming, sharing, urgencies = (np.random.default_rng(each) for each in seeds)
    trace = None if workload.trace is None else read_trace(workload.trace, workload.trace_format)
    starts = draw_arrivals(workload, arrivals, trace)
    turns = draw_turns(workload.session, sharing, len(starts), workload.num_requests)
    if anew:
        require_work(workload, turns, trace)
    prefixes = draw_prefixes(workload, spec, sharing)
    prompt_tokens, output_tokens, num_clipped = draw_lengths(
        workload, lengths, len(turns), facts.max_context_tokens, trace)
    users = share_out(workload.arrivals, output_tokens, turns)
    leads = draw_leads(workload, spec, trace, prompt_tokens, seed)
    own_tokens = prompt_tokens if leads is None else leads.own_tokens(prompt_tokens)
    prompts, isolation = _draw_prompts(workload, spec, prompts_of, own_tokens, users, prefixes or leads)
    if prefixes is not None:
        prompts = put_before(prefixes, sharing, prompts)
    if leads is not None:
        prompts = leads.before(prompts)
    firsts = [Turn(at, 0, prompt, tokens + prefix_length(workload), output)
              for at, (prompt, tokens, output) in enumerate(zip(prompts, prompt_tokens, output_tokens, strict=True))]
    limit = token_limit(workload, facts.max_context_tokens)
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
    return Schedule(requests, warmups, isolation, num_clipped, num_left_out,
                    () if trace is None else _trace_notes(trace, len(firsts)))


def _trace_notes(trace: Trace, num_used: int) -> tuple[str, ...]:
    """What of a trace's file is not in the run."""
    notes = [] if not trace.dropped else [
        f"{trace.num_dropped} of {trace.num_dropped + len(trace)} rows of the trace left out, which make no sense: "
        + "; ".join(f"{reason} ({count})" for reason, count in trace.dropped.items())]
    if num_used < len(trace):
        notes.append(f"the first {num_used} of the trace's {len(trace)} requests are used")
    return tuple(notes)


def check_able(workload: Workload, facts: EngineFacts, spec: ProbeSpec | None) -> None:
    """Raise UsageError when the engine cannot do what the workload asks."""
    if workload.prompt != "text" and spec is None:
        raise UsageError(
            f"workload {workload.name!r} asks for verified prompts, but the engine serves {facts.model!r}, which is "
            'not known to be a KV probe: serve one made by `pabench probe build`, or '
            'use a workload with prompt = "text"')
    if workload.prompt != "text" and spec is not None and spec.window is not None:
        raise UsageError(f"workload {workload.name!r} reads its prompts whole, and probe {spec.preset!r} sees no "
                         f"further than {spec.window} tokens: serve another preset, or use a workload with "
                         'prompt = "text"')
    if workload.prompt == "probe" and workload.temperature > 0 and spec is not None and spec.is_soft:
        raise UsageError(f"workload {workload.name!r} draws its answers (temperature {workload.temperature:g}), and "
                         f"probe {spec.preset!r} is soft, which is certain under greedy decoding alone: serve another")
    if workload.beam_width is not None and workload.prompt != "text" and spec is not None and spec.is_soft:
        raise UsageError(f"workload {workload.name!r} verifies beams, and probe {spec.preset!r} is soft: its beams are "
                         "not certain; serve another")
    if isinstance(workload.cache, float) and (facts.kv is None or facts.kv.block_size is None):
        raise UsageError(f"workload {workload.name!r} fills {workload.cache:.0%} of the cache, block by block, and the "
                         'engine does not tell the size of its blocks: state "cold" or "warm"')
    if workload.cache not in (None, "warm") and (workload.n > 1 or workload.beam_width is not None):
        raise UsageError(f"workload {workload.name!r} states what the cache does not hold, and samples of a request "
                         'find their own prompt in it, so that nobody could tell: leave it out, or state "warm"')
    needed = {"beam": workload.beam_width is not None, "cached_tokens": workload.cache is not None,
              "chat": workload.api == "chat", "n": workload.n > 1,
              "priority": workload.priorities is not None, "sampling": workload.temperature > 0,
              "stream": workload.cancel_share > 0}
    missing = [name for name, need in needed.items() if need and name not in facts.capabilities]
    if missing:
        raise UsageError(f"workload {workload.name!r} needs {', '.join(missing)}, which dialect {facts.dialect!r} of "
                         "this engine lacks: use another workload")


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
        priority=priority, chat=workload.api == "chat",
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

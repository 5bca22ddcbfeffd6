"""What the prompts of a trace have in common: equal hash ids become equal tokens.

Each block of a trace's prompt that has an id stands for `block_tokens * scale` tokens, drawn from that id and the
workload's seed alone. The prompt's own tokens come behind its blocks: on the probe a ring, whose answer is verified.
All prompts have one salt then, as what they share has to be shared from the first token on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pabench.engines.wording import COMMON_WORDS
from pabench.errors import UsageError
from pabench.load.lengths import TraceLaw
from pabench.load.prompts import MIN_PROMPT_TOKENS
from pabench.load.sharing import Prompt
from pabench.load.workload import Workload
from pabench.probe import ProbeSpec, Ring
from pabench.traces import Trace

Lead = tuple[int | str, ...]  # ids of the probe, or words


@dataclass(frozen=True, slots=True)
class Leads:
    """What each prompt begins with. `own_ids`: what is left for the prompts' own tokens, on the probe."""

    leads: tuple[Lead, ...]
    own_ids: range | None
    salt: int | None

    def own_tokens(self, prompt_tokens: Sequence[int]) -> list[int]:
        """What is left of each prompt behind its lead."""
        return [tokens - len(lead) for tokens, lead in zip(prompt_tokens, self.leads, strict=True)]

    def before(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Each prompt behind its lead."""
        return [self._behind(lead, prompt) for lead, prompt in zip(self.leads, prompts, strict=True)]

    def _behind(self, lead: Lead, prompt: Prompt) -> Prompt:
        if isinstance(prompt, Ring):
            assert self.salt is not None, "leads of a probe have one"
            ids = tuple(int(token) for token in lead)
            length = None if prompt.prompt_len is None else prompt.prompt_len + len(ids)
            return replace(prompt, lead=ids, salt=self.salt, prompt_len=length)
        if isinstance(prompt, str):
            return " ".join([*map(str, lead), prompt])
        assert isinstance(prompt, tuple), "a fork shares nothing"
        return (*(int(token) for token in lead), *prompt)


def draw_leads(
    workload: Workload, spec: ProbeSpec | None, trace: Trace | None, prompt_tokens: Sequence[int], seed: int
) -> Leads | None:
    """The leads of a workload whose prompts are as long as its trace's, where that tells hash ids; else None.

    Raises UsageError where the scale leaves less than a token of a block.
    """
    if trace is None or trace.prefixes is None or not isinstance(workload.prompt_tokens, TraceLaw):
        return None
    size = round(trace.prefixes.block_tokens * workload.scale)
    if size < 1:
        raise UsageError(f"scale {workload.scale:g} leaves nothing of the {trace.prefixes.block_tokens} tokens a block "
                         f"has in trace {workload.trace}: expected at least {1 / trace.prefixes.block_tokens:g}")
    half = range(0) if spec is None else spec.ring_ids[: len(spec.ring_ids) // 2]
    pool: Sequence[int | str] = COMMON_WORDS if spec is None else tuple(half)
    known: dict[int, list[int | str]] = {}
    leads = []
    for at, tokens in enumerate(prompt_tokens):
        ids = trace.prefixes.of(at)[: max(0, tokens - MIN_PROMPT_TOKENS[workload.prompt]) // size]
        for each in ids:
            if each not in known:
                rng = np.random.default_rng([seed, each & 0xFFFF_FFFF_FFFF_FFFF])
                # Not drawn from the pool itself: a trace of many million tokens shares its few words.
                known[each] = [pool[drawn] for drawn in rng.choice(len(pool), size).tolist()]
        leads.append(tuple(token for each in ids for token in known[each]))
    ringed = spec is not None and workload.prompt == "probe"
    return Leads(tuple(leads), spec.ring_ids[len(half):] if spec is not None and ringed else None,
                 spec.salt_ids[0] if spec is not None and ringed else None)

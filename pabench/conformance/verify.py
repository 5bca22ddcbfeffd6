"""From an answer to a failure: errors and lengths first, then every token against the KV probe's oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pabench.conformance.failure import Failure
from pabench.engines.base import Choice, Completion, GenerationRequest
from pabench.engines.cleaning import clean
from pabench.probe import Diagnosis, Fork, ProbePrompt, ProbeSpec, Ring, check_answer, diagnose

# Between the two branches of a fork that was met before, the logits differ by 2/3 of what they do elsewhere (two of
# three matches agree), about 8 nats: a low temperature makes the choice certain, and keeps the first one even.
FORK_TEMPERATURE = 0.25

_ENOUGH = 3    # tokens in a row that tell a shift from chance
_FURTHEST = 4  # tokens that a shift is looked for


@dataclass(frozen=True, slots=True)
class Ask:
    """A probe prompt and how to send it. `name` is what failure texts call it; `tokens` are exact, a choice."""

    prompt: ProbePrompt
    tokens: int
    name: str
    n: int = 1
    stream: bool = True
    temperature: float = 0.0

    @property
    def request(self) -> GenerationRequest:
        """The request to send."""
        return GenerationRequest(
            self.prompt.prompt, self.tokens, n=self.n, stream=self.stream, temperature=self.temperature
        )


def check_completion(
    spec: ProbeSpec, ask: Ask, completion: Completion, others: Sequence[Ask], block_size: int | None
) -> Failure | None:
    """What is wrong with one answer; None when nothing is. `others` shared the engine with it."""
    if completion.error is not None:
        return Failure(f"{ask.name} is answered with {ask.tokens} tokens",
                       f"HTTP {completion.status}: {clean(completion.error)}")
    if completion.truncated:
        return Failure(f"{ask.name} ends with a finish reason", f"the answer broke off after {_lengths(completion)} "
                       "tokens", hint="the stream ended early: was its entry dropped when the batch changed?")
    if len(completion.choices) != ask.n:
        return Failure(f"{ask.name} has {ask.n} samples", f"{len(completion.choices)} samples")
    for choice in sorted(completion.choices, key=lambda choice: choice.index):
        name = ask.name if ask.n == 1 else f"{ask.name} sample {choice.index}"
        failure = _check_choice(spec, ask, choice, name, others, block_size)
        if failure is not None:
            return failure
    return None


def _check_choice(
    spec: ProbeSpec, ask: Ask, choice: Choice, name: str, others: Sequence[Ask], block_size: int | None
) -> Failure | None:
    if choice.token_ids is None:
        return Failure(f"the tokens of {name}", "neither token ids nor text that can be read as tokens")
    ids = choice.token_ids
    if not check_answer(ask.prompt, ids).ok:
        found = diagnose(spec, ask.prompt, ids, block_size=block_size,
                         others=[other.prompt for other in others], names=[other.name for other in others])
        if found is not None:
            shifted = _shifted(ask.prompt, ids, found.index) if isinstance(ask.prompt, Ring) else ""
            return replace(_diagnosed(found, name), **({"hint": shifted} if shifted else {}))
    if isinstance(ask.prompt, Fork) and (failure := _check_loyalty(ask.prompt, ids, name, block_size)):
        return failure
    if len(ids) != ask.tokens:
        return Failure(f"{name} has {ask.tokens} tokens", f"{len(ids)} tokens, all of them right",
                       hint="a token was lost or invented: check what happens to the last token of a step that is "
                            "preempted, cancelled or the first of a batch")
    return None


def _diagnosed(found: Diagnosis, name: str) -> Failure:
    """The diagnosis in the lines of a failure text."""
    lines = dict(line.split(maxsplit=1) for line in str(found).splitlines())
    output = f"{name}[{found.index}]"
    return Failure(lines["expected"].replace(f"output {found.index}", output, 1), f"{output} = {lines['actual']}",
                   lines["reads"], lines["hint"])


def _shifted(ring: Ring, ids: Sequence[int], at: int) -> str:
    """A hint where all goes on rightly from a wrong place: one read misplaced, or tokens lost or doubled; else ""."""
    rest = list(ids[at : at + _ENOUGH])
    if len(rest) < _ENOUGH:
        return ""
    expected = ring.expected(at + _ENOUGH + _FURTHEST)
    for lost in range(1, _FURTHEST + 1):
        if rest == expected[at + lost : at + lost + _ENOUGH]:
            return f"the ring goes on {lost} further on: {lost} tokens were lost on their way, or one lookup missed"
        if at >= lost and rest == expected[at - lost : at - lost + _ENOUGH]:
            return f"the ring goes on {lost} further back: {lost} tokens were sent twice, or one lookup missed"
    return ""


def _check_loyalty(fork: Fork, ids: Sequence[int], name: str, block_size: int | None) -> Failure | None:
    """At each return to the fork the first choice must be made again: only generated slots remember it."""
    first = fork.branch(ids)
    for index in range(1, len(ids)):
        if ids[index - 1] != fork.fork or first is None or ids[index] == fork.branches[first][0]:
            continue
        position = len(fork.prompt)
        place = f"position {position}"
        if block_size is not None:
            place += f" -> block {position // block_size}, slot {position % block_size}"
        return Failure(
            f"{name}[{index}] = t{fork.branches[first][0]}, the branch it took at output 0 ({place})",
            f"{name}[{index}] = t{ids[index]}, the other branch",
            reads="all tokens of the prompt are right: what is wrong was written while generating",
            hint="another sample wrote into this one's slot, or it was never written: copy a shared block before "
                 "the first write to it",
        )
    return None


def _lengths(completion: Completion) -> str:
    return ", ".join(str(len(choice.token_ids or ())) for choice in completion.choices) or "0"

"""From an answer to a failure: errors and lengths first, then every token against the KV probe's oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pabench.conformance.failure import Failure
from pabench.engines.base import Choice, Completion, GenerationRequest, ImagePart
from pabench.engines.cleaning import clean
from pabench.probe import HARD_BETA, Diagnosis, ProbePrompt, ProbeSpec, Ring, check_answer, diagnose, exact_logprob

# Between the two branches of a fork that was met before, the logits differ by 2/3 of what they do elsewhere (two of
# three matches agree), about 8 nats: a low temperature makes the choice certain, and keeps the first one even.
FORK_TEMPERATURE = 0.25

def fork_temperature(spec: ProbeSpec) -> float:
    """FORK_TEMPERATURE, which is a hard probe's, for `spec`: a soft one has smaller logits."""
    return FORK_TEMPERATURE * spec.beta / HARD_BETA


def is_certain(spec: ProbeSpec, logprob: float | None) -> bool:
    """Whether it is that of a token which the probe is certain of, to a tenth."""
    certain = exact_logprob(spec)
    return logprob is not None and abs(logprob - certain) <= 0.1 + abs(certain) / 10


_ENOUGH = 3    # tokens in a row that tell a shift from chance
_FURTHEST = 4  # tokens that a shift is looked for


@dataclass(frozen=True, slots=True)
class Ask:
    """A probe prompt and how to send it. `name` is what failure texts call it; the other fields are the request's.

    `tokens` are exact, a choice; a choice that meets one of `stop_token_ids` ends there.
    """

    prompt: ProbePrompt
    tokens: int
    name: str
    n: int = 1
    stream: bool = True
    temperature: float = 0.0
    seed: int | None = None
    logprobs: bool = False
    chat: bool = False
    beam_width: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    images: tuple[ImagePart, ...] = ()

    @property
    def request(self) -> GenerationRequest:
        """The request to send."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        own |= {"prompt": self.prompt.prompt, "max_tokens": own.pop("tokens")}
        del own["name"]
        return GenerationRequest(**own)

    def length(self, ids: Sequence[int]) -> int:
        """How many tokens a choice has that begins with `ids`."""
        stops = (at + 1 for at, token in enumerate(ids[: self.tokens]) if token in self.stop_token_ids)
        return next(stops, self.tokens)

    def name_of(self, choice: Choice) -> str:
        """What failure texts call one of its samples."""
        return self.name if self.n == 1 else f"{self.name} sample {choice.index}"


def check_form(ask: Ask, completion: Completion) -> Failure | None:
    """What is wrong with an answer before its tokens are looked at: an error, a broken stream, missing samples."""
    if completion.error is not None:
        return Failure(f"{ask.name} is answered with {ask.tokens} tokens",
                       f"HTTP {completion.status}: {clean(completion.error)}")
    if completion.truncated:
        return Failure(f"{ask.name} ends with a finish reason", f"the answer broke off after {_lengths(completion)} "
                       "tokens", hint="the stream ended early: was its entry dropped when the batch changed?")
    if len(completion.choices) != ask.n:
        return Failure(f"{ask.name} has {ask.n} samples", f"{len(completion.choices)} samples")
    return None


def check_completion(
    spec: ProbeSpec, ask: Ask, completion: Completion, others: Sequence[Ask], block_size: int | None
) -> Failure | None:
    """What is wrong with one answer; None when nothing is. `others` shared the engine with it."""
    if (failure := check_form(ask, completion)) is not None:
        return failure
    for choice in sorted(completion.choices, key=lambda choice: choice.index):
        failure = _check_choice(spec, ask, choice, ask.name_of(choice), others, block_size)
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
    if not isinstance(ask.prompt, Ring) and (failure := _check_loyalty(ask.prompt, ids, name, block_size)):
        return failure
    return check_length(ask, ids, name)


def check_length(ask: Ask, ids: Sequence[int], name: str) -> Failure | None:
    """Whether as many tokens came as were asked for; the last question, when all that came are right."""
    if len(ids) != ask.length(ids):
        return Failure(f"{name} has {ask.length(ids)} tokens", f"{len(ids)} tokens, all of them right",
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


def _check_loyalty(
    prompt: ProbePrompt, ids: Sequence[int], name: str, block_size: int | None
) -> Failure | None:
    """Where two tokens may follow one, the first choice must be made again at each return: only generated slots
    remember it.
    """
    chosen: dict[int, int] = {}  # token -> output that first followed it
    for index, before in enumerate([prompt.prompt[-1], *ids[:-1]]):
        if before not in chosen:
            if len(prompt.successors(before)) > 1:
                chosen[before] = index
            continue
        first = chosen[before]
        if ids[index] == ids[first]:
            continue
        position = len(prompt.prompt) + first
        place = f"position {position}"
        if block_size is not None:
            place += f" -> block {position // block_size}, slot {position % block_size}"
        return Failure(
            f"{name}[{index}] = t{ids[first]}, the branch it took at output {first} ({place})",
            f"{name}[{index}] = t{ids[index]}, the other branch",
            reads="all tokens of the prompt are right: what is wrong was written while generating",
            hint="another sample wrote into this one's slot, or it was never written: copy a shared block before "
                 "the first write to it",
        )
    return None


def _lengths(completion: Completion) -> str:
    return ", ".join(str(len(choice.token_ids or ())) for choice in completion.choices) or "0"

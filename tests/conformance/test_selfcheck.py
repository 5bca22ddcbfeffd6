"""Self-consistency: what passes, what fails, and what it cannot tell, on a model of a few lines."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from pabench.conformance.comparison import Tally, nearly_tied
from pabench.conformance.failure import Failure
from pabench.conformance.selfcheck import SelfCheck
from pabench.conformance.tokens import Token, begin_alike
from pabench.conformance.verify import Ask
from pabench.engines.base import Choice, Completion, EngineFacts, GenerationRequest
from pabench.errors import EngineProtocol
from pabench.probe import Ring
from pabench.telemetry.vocabulary import KVFacts
from tests.conformance.test_sizes import PerfectEngine

VOCAB = 40
IDS = {"token_ids", "logprobs", "prompt_logprobs", "sampling", "cache_salt", "prefix_cache", "ignore_eos"}
RINGS = [Ring(tuple(range(first, first + 20)), 16) for first in (300, 400)]


@dataclass
class Model:
    """A model whose next token hangs on all before it, served without any fault. `jitter` is its noise in nats."""

    capabilities: set[str] = field(default_factory=lambda: set(IDS))
    jitter: float = 0.0
    flat: bool = False  # every prompt has one answer
    in_pieces: bool = False  # of text: an odd token goes on with the word before it
    edge: int = 16
    longest: int = 512
    time_for_references: bool = True
    asked: list[GenerationRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts = EngineFacts("vllm", "m", 512, kv=KVFacts(16, 64, prefix_caching=True),
                                 capabilities=frozenset(self.capabilities))
        self.rng = np.random.default_rng(1)

    def logprobs(self, context: tuple[int, ...]) -> np.ndarray:
        seed = len(context) if self.flat else [token % 2**32 for token in context]
        logits = np.random.default_rng(seed).normal(0, 3, VOCAB) + self.rng.uniform(-1, 1, VOCAB) * self.jitter / 4
        return logits - np.log(np.exp(logits).sum())

    def say(self, prompt: tuple[int, ...], count: int, temperature: float = 0.0) -> Choice:
        """`count` tokens behind `prompt`."""
        choice = Choice(0, token_ids=[], logprobs=[], runner_ups=[], finish_reason="length")
        for _ in range(count):
            logprobs = self.logprobs((*prompt, *choice.token_ids))
            best, second = np.argsort(logprobs)[::-1][:2]
            token = int(best)
            if temperature:
                weights = np.exp((logprobs - logprobs[best]) / temperature)
                token = int(self.rng.choice(VOCAB, p=weights / weights.sum()))
            choice.token_ids.append(token)
            choice.logprobs.append(float(logprobs[token]))
            choice.runner_ups.append(float(logprobs[second if token == best else best]))
        return choice

    def ask_alone(self, request: GenerationRequest, name: str) -> Completion:
        """See selfcheck.Asker. Prompts of text are words "w7"."""
        self.asked.append(request)
        prompt = request.prompt
        if isinstance(prompt, str):
            prompt = tuple(int(piece[1:]) if piece[1:].isdigit() else sum(map(ord, piece))
                           for word in prompt.split() for piece in re.findall("w[0-9]+|.+", word))
        choice = self.say(prompt, request.max_tokens, request.temperature)
        if request.prompt_logprobs:
            choice.prompt_logprobs = [None, *(float(self.logprobs(prompt[:i])[prompt[i]]) if prompt[i] < VOCAB else -9.0
                                              for i in range(1, len(prompt)))]
        if "token_ids" not in self.capabilities:
            pieces = [f"w{token}" if self.in_pieces and token % 2 else f" w{token}" for token in choice.token_ids]
            choice = Choice(0, "".join(pieces).strip(), finish_reason="length")
        return Completion([choice])


def checked(
    model: Model, change: Callable[[Choice], None] = lambda choice: None, ask: Ask | None = None, **others: Choice
) -> tuple[Failure | None, Tally]:
    """The failure of an answer of `model` that `change` has spoilt, and what was compared."""
    check, tally = SelfCheck(model.facts, seed=3), Tally()
    ask = ask or Ask(RINGS[0], 20, "A")
    request = check.request(ask)
    choice = model.ask_alone(request, "A").choices[0]
    change(choice)
    noise = check.noise(model)
    assert (noise.problem, noise.fault) == ("", "")
    return check.check(model, ask, choice, "A", list(others.items()), tally), tally


def spoil(index: int, **changes: object) -> Callable[[Choice], None]:
    def change(choice: Choice) -> None:
        for name, value in changes.items():
            getattr(choice, name)[index] = value

    return change


def test_a_sound_answer_is_compared_whole() -> None:
    failure, tally = checked(Model())
    assert failure is None
    assert (tally.compared, tally.total, tally.ties) == (20, 20, 0)


def test_a_noisy_but_sound_engine_passes() -> None:
    for _ in range(5):
        failure, tally = checked(Model(jitter=0.05))
        assert failure is None
        assert tally.compared >= 19


def test_every_reference_is_cold_and_one_is_behind_half_the_answer() -> None:
    model = Model()
    checked(model)
    references = [request for request in model.asked if request.cache_salt is not None]
    assert len({request.cache_salt for request in references}) == len(references) > 10
    first, second = references[-2:]
    assert len(second.prompt) == len(first.prompt) + 10


def test_a_wrong_token_with_a_clear_lead_is_a_fault() -> None:
    failure, _ = checked(Model(), spoil(5, token_ids=39, logprobs=-0.1))
    assert failure is not None
    assert failure.actual == "A[5] = token 39 at log-probability -0.1000"
    assert "nats before any other, as alone and cold" in failure.expected
    assert "self-consistency, without the KV probe: noise" in failure.reads


@pytest.mark.parametrize("told", [-9.0, math.nan])
def test_the_right_token_with_another_log_probability_is_a_fault(told: float) -> None:
    failure, tally = checked(Model(), spoil(7, logprobs=told))
    assert failure is not None
    assert failure.actual.startswith("A[7] = token")
    assert tally.compared == 7


def test_a_near_tie_is_excused_and_the_comparison_goes_on_behind_it() -> None:
    """The answer takes the runner-up where noise may put it first, and then says what it must behind that."""
    model = Model(jitter=0.4)
    model.longest = 60
    for first in range(300, 340):
        ask = Ask(Ring(tuple(range(first, first + 20)), 16), 20, "A")
        leads = [a - b for a, b in zip(*(lambda c: (c.logprobs, c.runner_ups))(model.say(ask.prompt.prompt, 20)),
                                       strict=True)]
        if min(leads[2:15]) < 0.05:
            break
    else:
        pytest.fail("no near tie in 40 answers")
    at = leads.index(min(leads[2:15]))

    def other(choice: Choice) -> None:
        context = (*ask.prompt.prompt, *choice.token_ids[:at])
        logprobs = model.logprobs(context)
        second = int(np.argsort(logprobs)[-2])
        rest = model.say((*context, second), 19 - at)
        choice.token_ids[at:] = [second, *rest.token_ids]
        choice.logprobs[at:] = [float(logprobs[second]), *rest.logprobs]
        choice.runner_ups[at:] = [float(logprobs.max()), *rest.runner_ups]

    failure, tally = checked(model, other, ask)
    assert failure is None
    assert tally.ties >= 1
    assert tally.compared >= 18


def test_a_foreign_answer_names_its_owner() -> None:
    model = Model()
    theirs = model.say(Ask(RINGS[1], 20, "B").prompt.prompt, 20)

    def steal(choice: Choice) -> None:
        choice.token_ids[4:] = theirs.token_ids[4:]
        choice.logprobs[4:] = theirs.logprobs[4:]

    failure, _ = checked(model, steal, B=theirs)
    assert failure is not None
    assert failure.hint.startswith("it goes on as B does from its token 4 on")


def test_samples_are_held_against_their_own_text_as_a_prompt() -> None:
    ask = Ask(RINGS[0], 20, "A", temperature=1.0)
    assert checked(Model(), ask=ask)[0] is None
    failure, _ = checked(Model(), spoil(6, logprobs=-0.01), ask=ask)
    assert failure is not None
    assert "as in a prompt that is read at once" in failure.expected
    blind, tally = checked(Model(IDS - {"prompt_logprobs"}), ask=ask)
    assert (blind, tally.compared, tally.total) == (None, 0, 20)


def words(choice: Choice) -> list[str]:
    return choice.text.split()


def put(at: int, *new: str) -> Callable[[Choice], None]:
    def change(choice: Choice) -> None:
        choice.text = " ".join([*words(choice)[:at], *new, *words(choice)[at + len(new):]])

    return change


TEXT = {"ignore_eos"}


def test_words_alone_are_compared_too() -> None:
    model = Model(TEXT)
    failure, tally = checked(model)
    assert (failure, tally.compared, tally.total) == (None, 20, 20)
    assert isinstance(model.asked[-1].prompt, str)


def test_a_word_may_depart_only_if_what_follows_does_not() -> None:
    """One word replaced: what follows it is not what the engine says behind the new one."""
    failure, _ = checked(Model(TEXT), put(5, "w39"))
    assert failure is not None
    assert failure.actual.startswith("A[6] = 'w")

    def go_on(choice: Choice) -> None:
        beginning = [*words(choice)[:5], "w39"]
        prompt = SelfCheck(Model(TEXT).facts, 0).request(Ask(RINGS[0], 20, "A")).prompt
        rest = Model(TEXT).ask_alone(GenerationRequest(f"{prompt} {' '.join(beginning)}", 14), "").choices[0]
        choice.text = " ".join([*beginning, *words(rest)])

    failure, tally = checked(Model(TEXT), go_on)
    assert failure is None
    assert (tally.ties, tally.compared) == (1, 19)


def test_what_stands_too_near_the_end_is_not_compared() -> None:
    failure, tally = checked(Model(TEXT), put(19, "w39"))
    assert failure is None
    assert (tally.compared, tally.total) == (19, 20)


def test_words_of_a_noisy_but_sound_engine_pass_where_samples_show_its_near_ties() -> None:
    """Without samples nothing can be told of it: here more than one word in a hundred departs."""
    ties = 0
    for first in range(300, 330):
        model = Model(TEXT | {"sampling"}, jitter=0.3)
        failure, tally = checked(model, ask=Ask(Ring(tuple(range(first, first + 20)), 16), 60, "A"))
        assert failure is None
        ties += tally.ties
    assert ties > 20
    silent = Model(TEXT, jitter=0.3)
    assert "without token ids and log-probabilities, or samples, a near tie" in SelfCheck(silent.facts, 3).noise(
        silent).problem


@pytest.mark.parametrize("more", [set(), {"sampling"}])
def test_words_that_are_cut_are_compared_as_far_as_they_go(more: set[str]) -> None:
    """The reference is asked for so many tokens as the answer has words: it ends inside of one, as the answer does."""
    for first in range(300, 340):
        ask = Ask(Ring(tuple(range(first, first + 20)), 16), 30, "A")
        failure, tally = checked(Model(TEXT | more, in_pieces=True), ask=ask)
        assert failure is None
        assert tally.ties == 0


@pytest.mark.parametrize("at", [5, 19])
def test_a_word_that_no_sample_begins_with_is_a_fault(at: int) -> None:
    failure, _ = checked(Model(TEXT | {"sampling"}), put(at, "w39"))
    assert failure is not None
    assert failure.actual == f"A[{at}] = 'w39'"


def test_a_departure_that_time_ran_out_on_is_neither_a_fault_nor_a_tie() -> None:
    model = Model(TEXT | {"sampling"})
    ask_alone = model.ask_alone

    def last(request: GenerationRequest, name: str) -> Completion:
        model.time_for_references = request.temperature != 0.3
        return ask_alone(request, name)

    model.ask_alone = last  # type: ignore[method-assign]
    failure, tally = checked(model, put(5, "w39"))
    assert (failure, tally.ties, tally.compared, tally.total) == (None, 0, 5, 20)


@pytest.mark.parametrize(("one", "other", "alike"), [
    (7, 7, True), (7, 77, False), ("over", "over", True), ("ov", "over", True), ("over", "ov\ufffd", True),
    ("over", "other", False), ("7", 7, False)])
def test_a_word_may_be_cut(one: int | str, other: int | str, alike: bool) -> None:
    assert begin_alike(Token(one), Token(other)) is alike


def test_a_model_that_cannot_show_what_it_reads() -> None:
    for capabilities in (IDS, TEXT):
        model = Model(set(capabilities), flat=True)
        assert "cannot show what it reads" in SelfCheck(model.facts, 3).noise(model).problem


def test_an_engine_that_contradicts_itself_alone_is_at_fault() -> None:
    model = Model(jitter=20)
    assert "twice alone in the engine and cold" in SelfCheck(model.facts, 3).noise(model).fault


def test_without_salts_the_reference_is_asked_for_before() -> None:
    """While the prompt is new: afterwards it would be served from what it is to judge."""
    model = Model(IDS - {"cache_salt"})
    check, tally = SelfCheck(model.facts, 3), Tally()
    assert not check.cold_at_any_time
    ask = Ask(RINGS[0], 20, "A")
    check.prepare(model, [ask])
    asked = len(model.asked)
    assert model.asked[-1].max_tokens == 20
    assert check.check(model, ask, model.say(ask.prompt.prompt, 20), "A", [], tally) is None
    assert len(model.asked) == asked


def test_a_reference_that_fails_is_the_engines_fault() -> None:
    model = Model()
    check = SelfCheck(model.facts, 3)
    check.noise(model)
    model.ask_alone = lambda request, name: Completion(status=500, error="no")  # type: ignore[method-assign]
    with pytest.raises(EngineProtocol, match="alone in the engine is answered with HTTP 500: no"):
        check.check(model, Ask(RINGS[0], 4, "A"), Choice(0, token_ids=[1]), "A", [], Tally())


@pytest.mark.parametrize(("one", "other", "tied"), [
    (-0.70, -0.71, True), (math.log(0.5) + 0.049, math.log(0.5) + 0.049, True), (-3.0, -3.05, True),
    (-0.01, -0.02, False), (-0.4, -0.5, False), (-1.0, -1.2, False), (math.nan, -1.0, False), (800.0, 800.0, False)])
def test_two_tokens_tie_only_if_they_may_be_of_one_distribution(one: float, other: float, tied: bool) -> None:
    """Where no runner-up is told: two that are both nearly certain were said of two different contexts."""
    assert nearly_tied(Token(5, one), Token(6, other), 0.05) is tied


@pytest.mark.parametrize(("tally", "proven"), [
    (Tally(), True), (Tally(answers=1), False), (Tally(answers=1, total=1), False),
    (Tally(answers=2, compared=1, total=1), True), (Tally(answers=1, compared=9, total=20), False)])
def test_answers_of_which_nothing_could_be_compared_prove_nothing(tally: Tally, proven: bool) -> None:
    """Empty ones too. A case that holds no answer against anything is not asked for that."""
    engine = PerfectEngine("smoke", 16, 512, 2048)
    engine._tally = tally
    assert (engine.unproven == "") is proven


def test_no_time_left_is_not_compared() -> None:
    model = Model()
    check, tally = SelfCheck(model.facts, 3), Tally()
    check.noise(model)
    model.time_for_references = False
    assert check.check(model, Ask(RINGS[0], 4, "A"), model.say((1, 2), 4), "A", [], tally) is None
    assert (tally.compared, tally.total) == (0, 4)

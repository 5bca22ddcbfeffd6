"""Self-consistency: answers that end before they should, by tokens and by words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pabench.conformance.comparison import Tally
from pabench.conformance.selfcheck import SelfCheck
from pabench.conformance.verify import Ask
from pabench.engines.base import Choice, Completion, GenerationRequest
from tests.conformance.test_selfcheck import IDS, RINGS, TEXT, Model, checked, put


def ended(after: int, reason: str = "stop") -> Callable[[Choice], None]:
    """An answer that ends after so many tokens, with `reason`."""
    def change(choice: Choice) -> None:
        for name in ("token_ids", "logprobs", "runner_ups"):
            if getattr(choice, name) is not None:
                setattr(choice, name, getattr(choice, name)[:after])
        choice.text, choice.finish_reason = " ".join(choice.text.split()[:after]), reason

    return change


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("after", [0, 5])
def test_an_answer_that_ends_where_alone_it_goes_on_is_a_failure(after: int, reason: str) -> None:
    failure, _ = checked(Model(), ended(after, reason))
    assert failure is not None
    assert failure.actual == f"A ends after {after} tokens"
    assert f"A[{after}] = token" in failure.expected


@pytest.mark.parametrize("after", [0, 5])
def test_what_an_answer_of_text_lacks_is_not_compared(after: int) -> None:
    failure, tally = checked(Model(TEXT), ended(after))
    assert failure is None
    assert (tally.compared, tally.total) == (after, 20)


@pytest.mark.parametrize("after", [0, 5, 19])
def test_text_that_is_cut_where_alone_it_has_more_at_that_length_is_a_failure(after: int) -> None:
    failure, tally = checked(Model(TEXT), ended(after, "length"))
    assert failure is not None
    assert failure.actual == f"A ends after {after} words"
    assert failure.expected.startswith(f"A[{after}] = 'w")
    assert (tally.answers, tally.compared, tally.total) == (1, after, 20)


class FewWords(Model):
    """Three tokens a word, or four at the end."""

    def ask_alone(self, request: GenerationRequest, name: str) -> Completion:
        answer = super().ask_alone(request, name)
        answer.choices[0].text = " ".join(answer.choices[0].text.split()[: request.max_tokens // 3])
        return answer


def test_text_of_fewer_words_than_tokens_is_whole_where_alone_it_has_no_more() -> None:
    failure, tally = checked(FewWords(TEXT))
    assert (failure, tally.total) == (None, 6)
    failure, _ = checked(FewWords(TEXT), ended(5, "length"))
    assert failure is not None


def test_a_word_that_is_cut_with_its_answer_is_no_departure_to_judge_its_length_by() -> None:
    """Two ways to write a word may be near ties, and take one token or two."""
    def cut(choice: Choice) -> None:
        ended(17, "length")(choice)
        put(16, "w")(choice)

    failure, tally = checked(Model(TEXT), cut)
    assert (failure, tally.compared, tally.total) == (None, 17, 20)


def test_half_a_character_at_the_end_need_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some engines leave it out of a stream and not of a whole answer."""
    say = Model.ask_alone

    def ask_alone(self: Model, request: GenerationRequest, name: str) -> Completion:
        answer = say(self, request, name)
        answer.choices[0].text += " \ufffd" * (request.max_tokens == 21)
        return answer

    monkeypatch.setattr(Model, "ask_alone", ask_alone)
    whole = Ask(RINGS[0], 21, "A")
    failure, tally = checked(Model(TEXT), ended(21, "length"), whole)
    assert (failure, tally.compared, tally.total) == (None, 21, 21)
    assert checked(Model(TEXT), ended(20, "length"), whole)[0] is not None


def test_an_answer_that_ends_alone_too_is_whole_and_its_reference_is_asked_for_once() -> None:
    model = Model(IDS - {"cache_salt"})
    say = model.say
    model.say = lambda prompt, count, temperature=0.0: say(prompt, min(count, 5), temperature)  # type: ignore[method-assign]
    check, tally = SelfCheck(model.facts, 3), Tally()
    ask = Ask(RINGS[0], 20, "A")
    check.prepare(model, [ask])
    asked = len(model.asked)
    choice = model.say(ask.prompt.prompt, 20)
    choice.finish_reason = "stop"
    assert check.check(model, ask, choice, "A", [], tally) is None
    assert (tally.compared, tally.total) == (5, 5)
    assert len(model.asked) == asked

"""Log-probabilities and drafts: whether numbers depend on the batch, how exact the cache is, whether guesses show."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.failure import fail
from pabench.conformance.gauges import sampled
from pabench.conformance.prompts import braid_of_prompt_length, fork_of_prompt_length
from pabench.conformance.targets import unsupported
from pabench.conformance.verify import Ask, fork_temperature, is_certain
from pabench.engines.base import Completion
from pabench.probe import exact_logprob


@pytest.mark.requirement("http/batch-invariant")
def test_batch_invariant(engine: EngineUnderTest) -> None:
    """Log-probabilities of forks, alone and in a crowd. At a fork they are no round numbers: the low bits show."""
    length = min(2 * engine.edge + 5, engine.longest // 3)
    tokens = min(engine.edge, engine.longest // 3)
    count = max(4, engine.profile.concurrency // 2)
    asks = [Ask(fork_of_prompt_length(engine.spec, engine.rng, length + i), tokens, f"fork {i}", logprobs=True,
                stream=False) for i in range(count)]
    engine.case = f"{count} forks of {length} to {length + count - 1} prompt tokens, one at a time, then all at once"
    alone = [engine.told([ask])[0] for ask in asks]
    crowd = engine.told(asks)
    constant = [_logprobs(one)[0] for one in alone if not any(is_certain(engine.spec, told) for told in _logprobs(one))]
    if engine.is_probe and constant:
        fail(f"log-probability {exact_logprob(engine.spec):.2f} of tokens behind a fork, which it demands",
             f"{constant[0]}, and none like that", hint="of a constant nothing could be told")
    drift = max(_drift(one, other) for one, other in zip(alone, crowd, strict=True))
    if drift > 0:
        fail("the same log-probabilities alone and in a batch, to the last bit",
             f"they differ by up to {drift:.3g}" if drift < inf else "an answer has other tokens",
             hint="kernels that split their work by the size of the batch add in another order")


def _drift(one: Completion, other: Completion) -> float:
    if one.choices[0].token_ids != other.choices[0].token_ids:
        return inf  # at a fork two tokens are as likely: a last bit decides
    pairs = zip(_logprobs(one), _logprobs(other), strict=True)
    return max(abs(first - second) for first, second in pairs)


def _logprobs(answer: Completion) -> list[float]:
    logprobs = answer.choices[0].logprobs
    if not logprobs:
        fail("log-probabilities of the answer", "none")
    return logprobs


@pytest.mark.requirement("http/kv-fidelity")
def test_kv_fidelity(engine: EngineUnderTest) -> None:
    """How far log-probabilities of a soft probe are from what exact keys and values give: cold, cached and in a batch.

    A number, no verdict: it fails only where a token is wrong.
    """
    exact = exact_logprob(engine.spec)
    if not engine.spec.is_soft:
        unsupported("the probe is a hard one, certain of every token: build and serve preset 'soft'")
    length = min(4 * engine.edge + 5, engine.longest // 3)
    rings = engine.rings([length] * 4)[0]
    asks = [Ask(ring, 2 * length, f"ring {i}", logprobs=True, stream=False) for i, ring in enumerate(rings)]
    engine.case = f"{len(rings)} rings of {length} prompt tokens, one alone twice, then all at once; greedy, two rounds"
    drifts = {what: _drifts(engine.ask(sent), exact) for what, sent in
              (("cold", asks[:1]), ("cached", asks[:1]), ("batch", asks))}
    told = ", ".join(f"{what} {sum(values) / len(values):.3g} (at most {max(values):.3g})"
                     for what, values in drifts.items())
    engine.note = f"mean drift of log-probabilities in nats, from {exact:.4f}: {told}"


def _drifts(answers: Sequence[Completion], exact: float) -> list[float]:
    return [abs(value - exact) for answer in answers for value in _logprobs(answer)]


@pytest.mark.requirement("http/spec-decode-exact")
def test_spec_decode_exact(engine: EngineUnderTest) -> None:
    """Rings, of which every good guess is right; braids, where guesses go wrong and generated slots are read again;
    samples; and exact lengths.
    """
    before = sampled(engine)
    block = engine.edge
    length = min(2 * block + 5, engine.longest // 4)
    rings = engine.rings([length - 1, length, length + 1])[0]
    engine.case = f"{engine.block_text}; 3 rings of about {length} prompt tokens, at once; greedy, three rounds"
    rounds = [Ask(ring, min(3 * length + i, engine.longest - length - 1), f"ring {i}") for i, ring in enumerate(rings)]
    engine.ask(rounds)
    for offset in (-1, 0, 1):
        length = min(2 * block, engine.longest // 4) + offset
        braid = braid_of_prompt_length(engine.spec, engine.rng, length)
        tokens = min(4 * block + offset, engine.longest - length)
        engine.case = f"{engine.block_text}; a braid of {length} prompt tokens; greedy {tokens} tokens"
        engine.ask([Ask(braid, tokens, "A")])
        if engine.can("n") and engine.can("sampling"):
            temperature = fork_temperature(engine.spec)
            engine.case += f"; then n {engine.profile.samples} at temperature {temperature:g}"
            engine.ask_samples(Ask(braid, tokens, "A", n=engine.profile.samples, temperature=temperature))
    after = sampled(engine)
    drafted = (after.drafted or 0) - (before.drafted or 0)
    if drafted <= 0:
        unsupported("the engine drafted nothing")
    accepted = "" if after.accepted is None else f", {(after.accepted - (before.accepted or 0)) / drafted:.0%} accepted"
    engine.note = f"{drafted:g} tokens drafted{accepted}"

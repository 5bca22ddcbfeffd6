"""Rings, forks, words and presets, without a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.errors import UsageError
from pabench.probe import (
    FIRST_RING,
    PRESETS,
    SEP,
    UNK,
    Chain,
    Codec,
    Fork,
    ProbeSpec,
    Ring,
    check_answer,
    complement,
    diagnose,
    draw_braid,
    draw_fork,
    draw_rings,
    exact_logprob,
    preset,
)

SPEC = PRESETS["tiny"]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_drawn_rings_are_disjoint_and_close(lengths: list[int], seed: int) -> None:
    rings = draw_rings(SPEC, np.random.default_rng(seed), lengths)
    tokens = [token for ring in rings for token in ring.tokens]
    assert len(set(tokens)) == len(tokens) == sum(lengths)
    for ring in rings:
        assert ring.prompt[0] == SEP
        assert ring.prompt[1] in SPEC.salt_ids
        assert ring.prompt[2] == ring.prompt[-1] == ring.tokens[0]
        assert ring.expected(len(ring.tokens))[-1] == ring.tokens[0]


@given(st.integers(1, 60), st.integers(0, 200), st.integers(1, 100))
def test_prompts_that_go_round_continue_where_they_stopped(size: int, extra: int, count: int) -> None:
    tokens = tuple(range(300, 300 + size))
    short = Ring(tokens, 16)
    long = Ring(tokens, 16, prompt_len=size + 3 + extra)
    assert long.prompt == (short.prompt + tuple(short.expected(extra)))
    assert long.expected(count) == short.expected(extra + count)[extra:]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_forks_differ_in_one_bit_and_check_both_ways(seed: int, branch_len: int) -> None:
    fork = draw_fork(SPEC, np.random.default_rng(seed), branch_len)
    for branch in fork.branches:
        assert check_answer(fork, [*branch, fork.fork]).ok
    assert check_answer(fork, [fork.fork]).wrong == 1


@given(st.lists(st.integers(0, 4095), min_size=1, max_size=50))
def test_words_and_ids_are_the_same(ids: list[int]) -> None:
    assert Codec.decode(Codec.encode(ids)) == ids


def test_what_is_no_word_shows_as_unknown() -> None:
    assert Codec.decode("t300 hello t5x t301") == [300, UNK, UNK, 301]


def test_complement_flips_every_bit() -> None:
    ring = draw_rings(SPEC, np.random.default_rng(0), [50])[0]
    flipped = complement(ring, SPEC)
    assert all(a ^ b == SPEC.vocab_size - 1 for a, b in zip(ring.tokens, flipped.tokens, strict=True))
    assert min(flipped.tokens) >= FIRST_RING


def test_nothing_after_a_wrong_token_is_verified() -> None:
    ring = Ring(tuple(range(300, 310)), 16)
    ids = ring.expected(6)
    ids[2] = 4000
    check = check_answer(ring, ids)
    assert (check.verified, check.wrong, check.first_wrong) == (2, 4, 2)


def test_one_bad_read_is_one_misread() -> None:
    """After a slip inside the ring the continuation is right in its own context, and is not blamed."""
    ring = Ring(tuple(range(300, 340)), 16)
    ids = [301, 302, 320, 321, 322]
    found = diagnose(SPEC, ring, ids, block_size=16)
    assert found is not None
    assert (found.misreads, found.index, found.expected, found.kind) == (1, 2, 303, "own")
    assert diagnose(SPEC, ring, ring.expected(100), block_size=16) is None


def test_a_slot_that_was_read_rightly_before_is_not_blamed() -> None:
    """In the second lap the ring's first slots have proved good: the generated copies are blamed."""
    ring = Ring(tuple(range(300, 310)), 16)
    ids = ring.expected(14)
    ids[12] = ids[12] ^ 1024
    found = diagnose(SPEC, ring, ids, block_size=4)
    assert found is not None
    assert found.position == len(ring.prompt) + 2
    assert (found.block, found.slot) == (3, 3)
    assert "generated ones are not" in found.hint
    ids[12] = SEP  # both copies would have to be lost
    lost = diagnose(SPEC, ring, ids, block_size=4)
    assert lost is not None
    assert lost.hint.startswith("nothing was found where two slots hold it")


def test_what_closes_a_ring_is_read_where_it_stands_behind_the_last() -> None:
    """A ring's first token stands in the prompt twice."""
    ring = Ring(tuple(range(300, 340)), 16)
    ids = ring.expected(40)
    ids[39] ^= 1
    found = diagnose(SPEC, ring, ids, block_size=16)
    assert found is not None
    assert (found.expected, found.position) == (300, 42)
    fork = draw_fork(SPEC, np.random.default_rng(4), 5)
    found = diagnose(SPEC, fork, [*fork.branches[1], fork.fork ^ 1], block_size=16)
    assert found is not None
    assert found.position == len(fork.prompt) - 1


def test_a_block_of_one_token_has_no_edge() -> None:
    ring = draw_rings(SPEC, np.random.default_rng(4), [50])[0]
    ids = ring.expected(40)
    for output in (6, 10):
        ids[output] ^= 1 << SPEC.bit_of(1, 0) | 1 << SPEC.bit_of(3, 2)
    found = diagnose(SPEC, ring, ids, block_size=1)
    assert found is not None
    assert "slot of blocks" not in found.hint


@pytest.mark.parametrize(("outputs", "bits", "says"), [
    ([3], [SPEC.bit_of(2, 1)], "one slot of one KV head"),
    ([3, 9], [SPEC.bit_of(2, 1), SPEC.bit_of(2, 3)], "only layer 2"),
    ([3, 9], [SPEC.bit_of(1, 0), SPEC.bit_of(3, 1)], "only KV head 0"),
    ([12, 28], [SPEC.bit_of(1, 0), SPEC.bit_of(3, 2)], "only the last slot"),   # positions 15 and 31
    ([13, 29], [SPEC.bit_of(1, 0), SPEC.bit_of(3, 2)], "only the first slot"),  # positions 16 and 32
    ([14, 20], [SPEC.bit_of(1, 0), SPEC.bit_of(3, 2)], "only block 1"),
])
def test_patterns_are_named(outputs: list[int], bits: list[int], says: str) -> None:
    ring = draw_rings(SPEC, np.random.default_rng(4), [50])[0]
    ids = ring.expected(40)
    for output in outputs:
        ids[output] ^= sum(1 << bit for bit in bits)
    found = diagnose(SPEC, ring, ids, block_size=16)
    assert found is not None
    assert found.misreads == len(outputs)
    assert found.hint.startswith(says)


@pytest.mark.parametrize(("build", "says"), [
    (lambda: Ring((300, 300), 16), "distinct"),
    (lambda: Ring((5,), 16), "ids from 272"),
    (lambda: Ring((300, 301), 16, prompt_len=3), "prompt_len 3"),
    (lambda: Fork(300, ((301,), (306,)), 16), "exactly one bit"),
    (lambda: draw_rings(SPEC, np.random.default_rng(0), [4000]), "preset 'long'"),
    (lambda: preset("huge"), "expected one of tiny"),
    (lambda: ProbeSpec("x", 4, 4, 3, 64, 1e20, 30, 16, 60), "do not divide"),
    (lambda: ProbeSpec("x", 4, 4, 2, 64, 1e4, 30, 16, 60), "raise rope_theta"),
])
def test_bad_input_says_what_to_do(build, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build()


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_every_bit_has_one_head(spec: ProbeSpec) -> None:
    heads = [spec.head_of(bit) for bit in range(spec.bits)]
    assert len(set(heads)) == spec.bits
    assert [spec.bit_of(*head) for head in heads] == list(range(spec.bits))


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_position_one_back_stands_out_at_any_distance(spec: ProbeSpec) -> None:
    """Layer 0's score falls short of its maximum by as much at every other distance as at the neighbours."""
    distances = np.arange(spec.max_context_tokens, dtype=np.float64)
    thetas = np.array([spec.thetas[i] for i in spec.fast_pairs])
    score = np.cos((distances[:, None] - 1) * thetas).sum(axis=1)
    gap = len(thetas) - np.delete(score, 1)
    assert gap.min() >= 0.999 * gap[0]


def test_a_chain_goes_on_as_it_did_before() -> None:
    chain = Chain((300, 301, 302, 300, 303, 300), salt=20)
    assert chain.prompt == (SEP, 20, 300, 301, 302, 300, 303, 300)
    assert (chain.successors(300), chain.successors(302), chain.successors(303)) == ((301, 303), (300,), (300,))
    assert (chain.successors(999), chain.owner(303), chain.owner(999)) == ((), 6, None)
    assert check_answer(chain, [303, 300, 301, 302]).ok
    assert check_answer(chain, [303, 301]).first_wrong == 1


def test_a_lead_makes_a_prompt_long_and_is_never_read() -> None:
    ring = Ring((300, 301, 302), salt=20, lead=(400, 401))
    assert ring.prompt == (SEP, 20, 400, 401, 300, 301, 302, 300)
    assert ring.expected(4) == [301, 302, 300, 301]
    assert (ring.owner(401), ring.owner(300), ring.successors(401), ring.successors(302)) == (3, 4, (), (300,))
    twice = Ring(ring.tokens, ring.salt, prompt_len=10, lead=ring.lead)
    assert twice.prompt == (*ring.prompt, 301, 302)
    assert twice.expected(2) == [300, 301]
    with pytest.raises(UsageError, match="a lead of other tokens"):
        Ring((300, 301), salt=20, lead=(301,))
    with pytest.raises(UsageError, match="closes after 8 prompt tokens"):
        Ring(ring.tokens, 20, prompt_len=7, lead=ring.lead)


@pytest.mark.parametrize(("num_forks", "lead"), [(1, 0), (5, 3), (200, 2)])
def test_a_braid_forks_at_every_second_token(num_forks: int, lead: int) -> None:
    braid = draw_braid(SPEC, np.random.default_rng(1), num_forks, lead)
    assert len(braid.prompt) == 3 + lead + 4 * num_forks
    forks = [token for token in dict.fromkeys(braid.body[lead:]) if len(braid.successors(token)) == 2]
    assert len(forks) == num_forks
    for fork in forks:
        one, other = braid.successors(fork)
        assert (one ^ other).bit_count() == 1
        assert braid.successors(one) == braid.successors(other)
    assert len({*braid.body}) == lead + 3 * num_forks


def test_a_braid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="needs 3000 tokens"):
        draw_braid(SPEC, np.random.default_rng(1), 1000)


def test_a_soft_probe_knows_what_exact_values_give() -> None:
    assert PRESETS["soft"].is_soft
    assert exact_logprob(PRESETS["soft"]) == pytest.approx(-12 * np.log1p(np.exp(-2)), rel=0.02)
    assert not SPEC.is_soft
    assert exact_logprob(SPEC) == pytest.approx(0, abs=1e-8)

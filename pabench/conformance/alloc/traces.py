"""Traces as Hypothesis draws them: plain JSON, small pools, few tokens, so that prefixes meet and blocks run out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from hypothesis import strategies as st

from pabench.conformance.alloc.adapter import Pool
from pabench.conformance.alloc.schedule import Limits

_TOKENS = st.integers(0, 1)
# What a trace has in their place: ids whose digits run together (1 11 and 11 1), or that agree in their low 16 bits.
_ALPHABETS = ((0, 1), (1, 11), (1, 1 + 2**16))
# Prompts begin with a part of one of these: so that blocks are found again, and their ends differ.
_TEXTS = ([0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0])
_PROMPTS = st.builds(lambda text, length, tail: text[:length] + tail, st.sampled_from([*_TEXTS[:1], *_TEXTS]),
                     st.integers(1, 12), st.lists(_TOKENS, max_size=2))
# More comes than goes: pools fill up, refuse and recycle.
_WEIGHTS = {"allocate": 5, "append": 3, "compute": 4, "fork": 2, "finish": 3, "free": 1, "swap_out": 2, "swap_in": 2,
            "truncate": 1}
_INDEX = st.integers(0, 7)
_FEW_KEYS = st.sampled_from([[], [], [], [], ["a"], ["b"]])
# Digests differ in their last digit, or in their first.
_DIGESTS = [[first + "0" * 30 + last] for first, last in ("01", "02", "31")]
_MANY_KEYS = st.sampled_from([[], ["a"], ["b"], ["a", "b"], ["ab"], ["30x100", "p"], ["100x30", "p"], *_DIGESTS])


def pools(
    *, caching: bool = False, window: bool = False, swap: bool = False, largest_block: int = 4
) -> st.SearchStrategy[Pool]:
    """3 to 8 blocks of 1 to 4 tokens: so small that faults show within some tens of operations."""
    return st.builds(
        Pool, num_blocks=st.integers(3, 8), block_size=st.integers(1, largest_block), max_tokens=st.just(0),
        caching=st.just(caching), window=st.integers(1, 9) if window else st.none(),
        host_blocks=st.integers(2, 8) if swap else st.just(0),
    ).map(_with_longest)


def _with_longest(pool: Pool) -> Pool:
    """No sequence is longer than half of the pool, so that several meet."""
    longest = max(2, pool.num_blocks // 2) * pool.block_size
    return Pool(pool.num_blocks, pool.block_size, longest, pool.caching, pool.window, pool.host_blocks)


def operations(kinds: Collection[str], *, many_keys: bool = False) -> st.SearchStrategy[list[Any]]:
    """One operation of these kinds."""
    extra = _MANY_KEYS if many_keys else _FEW_KEYS
    known: dict[str, st.SearchStrategy[Any]] = {
        "allocate": st.tuples(st.just("allocate"), _PROMPTS, extra),
        "compute": st.tuples(st.just("compute"), _INDEX, st.integers(1, 4)),
        "append": st.tuples(st.just("append"), _INDEX, st.lists(_TOKENS, min_size=1, max_size=4)),
        "fork": st.tuples(st.just("fork"), _INDEX),
        "truncate": st.tuples(st.just("truncate"), _INDEX, st.integers(1, 4)),
        "swap_out": st.tuples(st.just("swap_out"), _INDEX),
        "swap_in": st.tuples(st.just("swap_in"), _INDEX),
        "finish": st.tuples(st.just("finish"), _INDEX),
        "free": st.tuples(st.just("free"), _INDEX),
    }
    return st.one_of([known[kind].map(list) for kind in kinds for _ in range(_WEIGHTS[kind])])


def traces(
    pool: st.SearchStrategy[Pool], kinds: Collection[str], longest: int, *, many_keys: bool = False
) -> st.SearchStrategy[dict[str, Any]]:
    """A pool, and up to `longest` operations of these kinds."""
    each = operations(kinds, many_keys=many_keys)
    return st.builds(_spelled, st.sampled_from(_ALPHABETS), pool,
                     st.lists(each, min_size=longest // 2, max_size=longest))


def _spelled(alphabet: Sequence[int], pool: Pool, operations: Sequence[list[Any]]) -> dict[str, Any]:
    """A trace, with the tokens of an alphabet in the place of 0 and 1."""
    at = {"allocate": 1, "append": 2}  # where an operation has its tokens
    return {"pool": pool, "operations": [
        [[alphabet[token] for token in part] if place == at.get(each[0]) else part for place, part in enumerate(each)]
        for each in operations]}


def schedules(longest: int, *, caching: bool, equal: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """A pool, limits of a step, and up to `longest` operations of a scheduler. Requests may be larger than the pool.

    `equal`: all requests of a trace have one length of prompt and one of output.
    """
    if equal:
        adds = st.tuples(st.integers(1, 8), st.integers(1, 6)).map(lambda lengths: [
            st.tuples(st.just("add"), st.sampled_from([text[: lengths[0]] for text in _TEXTS]), st.just(lengths[1]))])
    else:
        adds = st.just([st.tuples(st.just("add"), _PROMPTS, st.integers(1, 6)),
                        st.tuples(st.just("add"), _PROMPTS, st.integers(1, 12))])
    operations = adds.flatmap(lambda add: st.lists(st.one_of([
        add[0], st.tuples(st.just("step")), st.tuples(st.just("step")), add[-1], st.tuples(st.just("abort"), _INDEX),
    ]).map(list), min_size=4, max_size=longest))
    pool = st.builds(Pool, num_blocks=st.integers(3, 8), block_size=st.integers(1, 4),
                     max_tokens=st.sampled_from((6, 12, 24)), caching=st.just(caching))
    limits = st.integers(1, 4).flatmap(lambda seqs: st.builds(
        Limits, max_num_batched_tokens=st.integers(seqs, 12), max_num_seqs=st.just(seqs)))
    return st.fixed_dictionaries({"pool": pool, "limits": limits, "operations": operations})

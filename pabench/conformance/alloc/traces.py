"""Traces as Hypothesis draws them: plain JSON, small pools, few tokens, so that prefixes meet and blocks run out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st

from pabench.conformance.alloc.adapter import Pool

_TOKENS = st.integers(0, 1)
_INDEX = st.integers(0, 7)
EXTRA = st.sampled_from([[], [], ["a"], ["b"], ["a", "b"], ["ab"], ["30x100", "p"], ["100x30", "p"]])


def pools(
    *, caching: bool = False, window: bool = False, swap: bool = False, largest_block: int = 4
) -> st.SearchStrategy[Pool]:
    """4 to 12 blocks of 1 to 4 tokens: so small that faults show within some tens of operations."""
    return st.builds(
        Pool, num_blocks=st.integers(4, 12), block_size=st.integers(1, largest_block), max_tokens=st.just(0),
        caching=st.just(caching), window=st.integers(1, 9) if window else st.none(),
        host_blocks=st.integers(2, 8) if swap else st.just(0),
    ).map(_with_longest)


def _with_longest(pool: Pool) -> Pool:
    """No sequence is longer than half of the pool, so that several meet."""
    longest = max(2, pool.num_blocks // 2) * pool.block_size
    return Pool(pool.num_blocks, pool.block_size, longest, pool.caching, pool.window, pool.host_blocks)


def operations(kinds: Collection[str]) -> st.SearchStrategy[list[Any]]:
    """One operation of these kinds."""
    known: dict[str, st.SearchStrategy[Any]] = {
        "allocate": st.tuples(st.just("allocate"), st.lists(_TOKENS, min_size=1, max_size=12), EXTRA),
        "compute": st.tuples(st.just("compute"), _INDEX, st.integers(1, 12)),
        "append": st.tuples(st.just("append"), _INDEX, st.lists(_TOKENS, min_size=1, max_size=4)),
        "fork": st.tuples(st.just("fork"), _INDEX),
        "truncate": st.tuples(st.just("truncate"), _INDEX, st.integers(1, 4)),
        "swap_out": st.tuples(st.just("swap_out"), _INDEX),
        "swap_in": st.tuples(st.just("swap_in"), _INDEX),
        "free": st.tuples(st.just("free"), _INDEX),
    }
    return st.one_of([known[kind].map(list) for kind in kinds])


def traces(pool: st.SearchStrategy[Pool], kinds: Collection[str], longest: int) -> st.SearchStrategy[dict[str, Any]]:
    """A pool, and up to `longest` operations of these kinds. Short ones first: they are what a failure shrinks to."""
    each = operations(kinds)
    many = st.lists(each, max_size=12) | st.lists(each, min_size=longest // 2, max_size=longest)
    return st.fixed_dictionaries({"pool": pool, "operations": many})

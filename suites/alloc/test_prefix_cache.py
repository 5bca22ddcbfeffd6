"""What may be found, what has to be, and what a block is found by."""

from __future__ import annotations

import itertools

import pytest

from pabench.conformance.alloc import AllocatorUnderTest, Play, Pool
from pabench.conformance.alloc.checks import check_hit
from pabench.conformance.failure import fail
from pabench.conformance.targets import unsupported

_ALIKE = (["0" * 31 + "1"], ["0" * 31 + "2"])  # extra keys as long as digests


def finds_what_stands_there(play: Play) -> None:
    """Every hit against what the blocks hold."""
    for step in play:
        check_hit(play, step)


@pytest.mark.requirement("alloc/hit-oracle")
def test_hit_oracle(allocator: AllocatorUnderTest) -> None:
    """All operations, so that blocks are recycled, cut short, never computed."""
    allocator.every_trace(finds_what_stands_there, caching=True, kinds=("allocate", "compute", "append", "finish"),
                          about="hit")
    if allocator.can("truncate") or allocator.can("fork"):
        allocator.every_trace(finds_what_stands_there, caching=True)


@pytest.mark.requirement("alloc/hash-covers-parent-and-extra-keys")
def test_hash_covers_parent_and_extra_keys(allocator: AllocatorUnderTest) -> None:
    """Prompts of two tokens, which are alike, and many extra keys in blocks of one or two: little is the same."""
    allocator.every_trace(finds_what_stands_there, caching=True, kinds=("allocate", "finish", "free"), largest_block=2,
                          many_keys=True, about="hit")


@pytest.mark.requirement("alloc/hash-covers-parent-and-extra-keys", case="every-short-prompt")
@pytest.mark.parametrize("alphabet", [(0, 1), (1, 1 + 2**16)], ids=["plain", "alike"])
def test_every_short_prompt(allocator: AllocatorUnderTest, alphabet: tuple[int, int]) -> None:
    """All prompts of up to five tokens in blocks of one, shortest first: each block is met behind every beginning, of
    which some are cached and some are not yet.
    """
    pool = Pool(64, 1, 6, caching=True)
    allocator.claim(pool)
    play, found = allocator.play(pool), False
    allocator.case += f"; all prompts of 1 to 5 tokens of {alphabet}, one after the other, each computed whole"
    for length in range(1, 6):
        for tokens in itertools.product(alphabet, repeat=length):
            step = play.allocate(tokens)
            if step is None or step.refused:
                continue
            found = found or step.num_cached > 0
            check_hit(play, step)
            play.compute(step.held)
            play.free(step.held)
    if not found:
        unsupported("nothing was found again, though the manager says that it can")


def finds_what_is_there(play: Play) -> None:
    """Blocks that are complete and were not handed out since."""
    size = play.pool.block_size
    for step in play:
        if step.operation != "allocate" or step.refused:
            continue
        expected = min(step.num_resident, (step.held.num_tokens - 1) // size)
        if step.num_cached // size < expected:
            fail(f"{step.held.name} finds {expected} blocks: they were computed, and nobody was given them since",
                 f"it finds {step.num_cached // size} ({step.num_cached} tokens)",
                 hint="when two blocks hold the same, the second must stay findable after the first is gone")


@pytest.mark.requirement("alloc/completeness")
def test_completeness(allocator: AllocatorUnderTest) -> None:
    """Duplicates, evictions in between."""
    allocator.every_trace(finds_what_is_there, caching=True, kinds=("allocate", "compute", "finish"))


def leaves_a_token(play: Play) -> None:
    """At least the last token is to be computed: what follows it is not in the cache."""
    for step in play:
        if step.operation == "allocate" and not step.refused and step.num_cached >= step.held.num_tokens:
            fail(f"of {step.held.num_tokens} tokens of {step.held.name} at most {step.held.num_tokens - 1} are found",
                 f"{step.num_cached} are", hint="with nothing left to compute there is no logit to sample from")


@pytest.mark.requirement("alloc/hit-leaves-a-token")
def test_hit_leaves_a_token(allocator: AllocatorUnderTest) -> None:
    """Whole prompts found again, of every length to the block size."""
    allocator.every_trace(leaves_a_token, caching=True, kinds=("allocate", "finish", "free"), about="hit")


@pytest.mark.requirement("alloc/block-key-not-predictable")
def test_block_key_not_predictable(allocator: AllocatorUnderTest) -> None:
    """Keys of many short prompts, with and without extra keys. Some tokens and some keys are much alike."""
    pool = Pool(8, 1, 8, caching=True)
    allocator.claim(pool)
    seen: dict[bytes, str] = {}
    prompts = [tokens for length in range(1, 7) for tokens in itertools.product((0, 1), repeat=length)]
    prompts += itertools.product((1, 1 + 2**16), repeat=2)
    for extra, tokens in itertools.product(([], ["a"], ["b"], ["a", "b"], ["ab"], *_ALIKE), prompts):
        key, prompt = allocator.block_keys(pool, list(tokens), extra)[-1], f"{list(tokens)} with {extra}"
        allocator.case = f"the key of the last block of {prompt}, blocks of 1"
        if len(key) < 16:
            fail("a key of at least 16 bytes, or a hit that compares the tokens", f"{len(key)} bytes",
                 hint="two prompts with one key can be made by whoever wants another's blocks")
        if seen.setdefault(key, prompt) != prompt:
            fail("a key of its own", f"that of {seen[key]}")

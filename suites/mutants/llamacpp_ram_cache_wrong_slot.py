"""Cached conversations are kept by slot, and come back into another conversation that had the slot before."""

from __future__ import annotations

from collections.abc import Sequence

from reference_engine.memory.prefix_cache import PrefixCache

BUG = "llamacpp-ram-cache-wrong-slot"
MUST_FAIL = ("http/concurrent-isolation",)
ENGINE_ARGS: tuple[str, ...] = ()
SLOTS = 8

_saved: dict[int, list[int]] = {}  # slot -> the blocks of the conversation that was found there last


def apply() -> None:
    """Every conversation that is found again gets the blocks of the one that its slot held before."""
    find = PrefixCache.find
    turn = [0]

    def find_by_slot(self: PrefixCache, keys: Sequence[bytes]) -> list[int]:
        found = find(self, keys)
        if not found:
            return found
        turn[0] = (turn[0] + 1) % SLOTS
        before = _saved.get(turn[0], [])
        _saved[turn[0]] = found
        cached = all(block in self._keys for block in before)
        return before if cached and len(before) == len(found) else found

    PrefixCache.find = find_by_slot  # type: ignore[method-assign]

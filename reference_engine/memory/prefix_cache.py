"""Automatic prefix caching: computed full blocks, found by all that their contents depend on.

A block's key is a digest of the key of the block before it, its own tokens, and what else the request brings: a salt
in front of all, and in its place each image that reaches into the block (an engine with adapters adds theirs). So a
key stands for a whole prefix, and two prefixes that differ anywhere share no key behind that place.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence, Set
from hashlib import blake2b
from typing import Protocol

from reference_engine.memory.allocator import IntegrityError

_KEY_BYTES = 16


def root_key(*extra: str) -> bytes:
    """What a chain begins with: the extra keys of the request."""
    digest = blake2b(digest_size=_KEY_BYTES)
    for part in extra:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)  # ("ab", "c") is not ("a", "bc")
    return digest.digest()


class Span(Protocol):
    """What stands behind some positions of a prompt, whatever the ids of its tokens there. Keys have one length."""

    @property
    def start(self) -> int:
        """Its first position."""
        ...

    @property
    def end(self) -> int:
        """The position behind its last."""
        ...

    @property
    def key(self) -> bytes:
        """What it is told from others by."""
        ...


def extend_keys(
    keys: list[bytes], root: bytes, tokens: Sequence[int], num_tokens: int, block_size: int, spans: Sequence[Span] = ()
) -> None:
    """Append to `keys` those of the full blocks among the first `num_tokens` tokens that it lacks."""
    for start in range(len(keys) * block_size, num_tokens - block_size + 1, block_size):
        block = array("q", tokens[start : start + block_size]).tobytes()
        parent = keys[-1] if keys else root
        inside = [span for span in spans if span.start < start + block_size and span.end > start]
        extra = b"".join(span.key + array("q", [span.start - start]).tobytes() for span in inside)
        keys.append(blake2b(parent + block + extra, digest_size=_KEY_BYTES).digest())


class PrefixCache:
    """Which blocks hold what, and which of them nobody owns any more: those are evicted, least recently used first."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, list[int]] = {}  # two sequences that computed the same prefix hold a block each
        self._keys: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Blocks kept without an owner."""
        return len(self._idle)

    @property
    def idle(self) -> Set[int]:
        """The blocks kept without an owner."""
        return self._idle.keys()

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks for the longest known beginning of `keys`."""
        found = []
        for key in keys:
            blocks = self._blocks.get(key)
            if blocks is None:
                break
            found.append(blocks[0])
        return found

    def add(self, block: int, key: bytes) -> None:
        """An owned block may be found from now on."""
        if block not in self._keys:
            self._keys[block] = key
            self._blocks.setdefault(key, []).append(block)

    def is_idle(self, block: int) -> bool:
        """Whether a block is kept without an owner."""
        return block in self._idle

    def claim(self, block: int) -> None:
        """An idle block has an owner again."""
        del self._idle[block]

    def keep(self, block: int) -> bool:
        """A block has lost its last owner. False: it is not known here, so it is free."""
        if block not in self._keys:
            return False
        self._idle[block] = None
        return True

    def evict(self) -> int:
        """Forget the idle block that was used least recently; it may be reused."""
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        key = self._keys.pop(block)
        blocks = self._blocks[key]
        blocks.remove(block)
        if not blocks:
            del self._blocks[key]

    def clear(self) -> list[int]:
        """Forget everything. Returns the blocks that nobody owned."""
        idle = list(self._idle)
        self._idle.clear()
        self._blocks.clear()
        self._keys.clear()
        return idle

    def check_integrity(self, holders: Sequence[int]) -> None:
        """Raise IntegrityError unless the books agree with each other and with `holders`, the owners of each block."""
        listed = sorted((block, key) for key, blocks in self._blocks.items() for block in blocks)
        if listed != sorted(self._keys.items()):
            raise IntegrityError(f"{len(listed)} blocks are listed by key and {len(self._keys)} keys by block, or they "
                                 "do not agree")
        wrong = [(block, holders[block]) for block in self._keys if (holders[block] == 0) != (block in self._idle)]
        unknown = [block for block in self._idle if block not in self._keys]
        if wrong or unknown:
            raise IntegrityError(f"cached (block, holders) that are idle and owned, or neither: {wrong[:8]}; "
                                 f"idle without a key: {unknown[:8]}")

"""What every block holds, kept beside the manager under test: the oracle of the allocator level.

The contents of a slot depend on its token, on all tokens before it and on the extra keys of its sequence: that whole
prefix is what the model knows a slot by. So it never asks which block, only whether what a sequence reads is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

Block = Hashable
Prefix = int  # stands for (extra keys, tokens up to and including a position)


class Prefixes:
    """Gives each prefix a number, so that comparing two costs nothing. Knows nothing of blocks."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], Prefix] = {}
        self._texts: list[str] = []

    def root(self, extra: Sequence[str]) -> Prefix:
        """Of no token yet."""
        return self._number(("root", *extra), f"[{', '.join(extra)}] " if extra else "")

    def behind(self, before: Prefix, token: int) -> Prefix:
        """One token further."""
        return self._number((before, token), f"{self._texts[before]}{token} ")

    def text(self, prefix: Prefix | None) -> str:
        """For failure texts: the extra keys and tokens."""
        return "nothing" if prefix is None else self._texts[prefix].strip() or "nothing"

    def _number(self, key: tuple[object, ...], text: str) -> Prefix:
        if key not in self._numbers:
            self._numbers[key] = len(self._texts)
            self._texts.append(text)
        return self._numbers[key]


@dataclass(slots=True, eq=False)
class Held:
    """A sequence as the model knows it. `prefixes[p]` is what its position p has to hold."""

    seq: int
    name: str
    extra: tuple[str, ...]
    tokens: list[int]
    prefixes: list[Prefix]
    num_computed: int = 0
    table: list[Block | None] = field(default_factory=list)  # as it was when the sequence was last looked at
    num_dropped: int = 0                                     # positions behind the window, not to be read any more
    num_slid: int = 0                                        # those that the manager was told of
    host: list[Block] | None = None                          # its blocks in host memory, while it is swapped out

    @property
    def num_tokens(self) -> int:
        """Slots that it has a right to."""
        return len(self.tokens)


class Memory:
    """What stands in the slots of all blocks, and which blocks may be found again."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._slots: dict[Block, list[Prefix | None]] = {}
        self._complete: dict[Block, Prefix] = {}  # computed to the last slot and not handed out since

    def __getitem__(self, block: Block) -> list[Prefix | None]:
        """The slots of a block; of one that was never written, empty."""
        return self._slots.setdefault(block, [None] * self.block_size)

    def write(self, block: Block, slot: int, prefix: Prefix) -> None:
        """A step has computed this slot."""
        self[block][slot] = prefix

    def complete(self, block: Block, prefix: Prefix) -> None:
        """A block was computed to its last slot by a sequence that tells so: it may be found."""
        self._complete.setdefault(block, prefix)

    def is_complete(self, block: Block | None) -> bool:
        """Whether it may be found."""
        return block in self._complete

    def hand_out(self, blocks: Iterable[Block]) -> None:
        """Blocks that come to a sequence as new: what stands in them stays there, and may not be found any more."""
        for block in blocks:
            self._complete.pop(block, None)

    def copy(self, source: Memory, copies: Iterable[tuple[Block, Block]]) -> None:
        """Into blocks of this memory, as if all at once."""
        read = [(target, list(source[block])) for block, target in copies]
        for target, slots in read:
            self._slots[target] = slots

    def resident(self, prefixes: Sequence[Prefix]) -> int:
        """How many of the leading whole blocks of a sequence that is to hold `prefixes` stand somewhere, complete."""
        found = set(self._complete.values())
        size, count = self.block_size, 0
        while (count + 1) * size <= len(prefixes) and prefixes[(count + 1) * size - 1] in found:
            count += 1
        return count

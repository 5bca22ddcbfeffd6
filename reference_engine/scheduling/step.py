"""What one forward pass computes."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from reference_engine.memory.allocator import BlockCopy
from reference_engine.scheduling.sequence import Request, Sequence


@dataclass(slots=True)
class Step:
    """`num_new[i]` >= 1 next tokens of `sequences[i]`, after the moves, which are done in their order.

    A move is ("copy", device to device) | ("out", device to host) | ("in", host to device).
    """

    sequences: list[Sequence] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    moves: list[tuple[str, list[BlockCopy]]] = field(default_factory=list)
    draft_room: dict[int, int] = field(default_factory=dict)     # sequence id -> draft tokens that there are slots for
    drafts: dict[int, list[int]] = field(default_factory=dict)   # sequence id -> draft tokens to verify
    admitted: list[Request] = field(default_factory=list)        # for the first time

    def add(self, seq: Sequence, num_new: int) -> None:
        """Take a sequence in."""
        self.sequences.append(seq)
        self.num_new.append(num_new)

    @property
    def num_rows(self) -> list[int]:
        """Tokens that the pass computes of each sequence: the new ones, and the drafts behind them."""
        if not self.drafts:
            return self.num_new
        pairs = zip(self.sequences, self.num_new, strict=True)
        return [num_new + len(self.drafts.get(seq.id, ())) for seq, num_new in pairs]

    def move(self, kind: str, copies: SequenceOf[BlockCopy]) -> None:
        """Copies to do before the pass; consecutive ones of a kind are done as if at once."""
        if not copies:
            return
        if self.moves and self.moves[-1][0] == kind:
            self.moves[-1][1].extend(copies)
        else:
            self.moves.append((kind, list(copies)))

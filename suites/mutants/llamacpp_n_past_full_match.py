"""The last token of an answer counts as computed although it was never fed back: the next turn has a hole there."""

from __future__ import annotations

from reference_engine.scheduling.scheduler import Scheduler
from reference_engine.scheduling.sequence import Sequence

BUG = "llamacpp-n-past-full-match"
MUST_FAIL = ("http/cold-equals-warm",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """A block that this token fills is cached when the request ends."""
    release = Scheduler._release

    def release_and_publish(self: Scheduler, seq: Sequence) -> None:
        size, length = self.allocator.block_size, seq.num_tokens
        held = len(self.allocator.block_table(seq.id)) * size
        if self._caches_prefixes and length % size == 0 and seq.num_computed == length - 1 and held >= length:
            self._extend_keys(seq, length)
            self.allocator.publish(seq.id, seq.keys)
        release(self, seq)

    Scheduler._release = release_and_publish  # type: ignore[method-assign]

"""The reference engine's allocators as adapters of the allocator level."""

from __future__ import annotations

from collections.abc import Sequence

from pabench import __version__
from pabench.conformance.alloc import Copies, Pool
from reference_engine.memory.allocator import HOLE, Allocator
from reference_engine.memory.contiguous import ContiguousAllocator
from reference_engine.memory.paged import PagedAllocator
from reference_engine.memory.prefix_cache import extend_keys, root_key


class ReferenceAllocator:
    """What paged and contiguous have in common: they fulfil one protocol."""

    capabilities = frozenset({"fork", "admission", "truncate"})
    kind = ""

    def __init__(self) -> None:
        self._allocator: Allocator
        self._pool: Pool
        self._texts: dict[int, tuple[list[int], bytes]] = {}  # tokens, and the key that their chain begins with

    def describe(self) -> str:
        """See AllocatorAdapter."""
        return f"reference engine {__version__}, {self.kind}"

    def _keys(self, seq: int, num_tokens: int) -> list[bytes]:
        tokens, root = self._texts[seq]
        keys: list[bytes] = []
        extend_keys(keys, root, tokens, num_tokens, self._pool.block_size)
        return keys

    def allocate(self, seq: int, tokens: Sequence[int], extra: Sequence[str] = ()) -> int | None:
        """See AllocatorAdapter."""
        self._texts[seq] = (list(tokens), root_key(*extra))
        keys = self._keys(seq, len(tokens)) if self._pool.caching else []
        return self._allocator.allocate(seq, len(tokens), self._pool.max_tokens, keys)

    def append(self, seq: int, tokens: Sequence[int]) -> Copies | None:
        """See AllocatorAdapter."""
        copies = self._allocator.append(seq, len(tokens))
        if copies is not None:
            self._texts[seq][0].extend(tokens)
        return copies

    def fork(self, parent: int, child: int) -> Copies | None:
        """See AllocatorAdapter."""
        copies = self._allocator.fork(parent, child)
        if copies is not None:
            tokens, root = self._texts[parent]
            self._texts[child] = (list(tokens), root)
        return copies

    def truncate(self, seq: int, num_tokens: int) -> None:
        """See AllocatorAdapter."""
        self._allocator.truncate(seq, num_tokens)
        del self._texts[seq][0][num_tokens:]

    def free(self, seq: int) -> None:
        """See AllocatorAdapter."""
        self._allocator.free(seq)

    def block_table(self, seq: int) -> list[int | None]:
        """See AllocatorAdapter."""
        return [None if block == HOLE else block for block in self._allocator.block_table(seq)]

    def num_free_blocks(self) -> int:
        """See AllocatorAdapter."""
        return self._allocator.num_free_blocks

    def can_ever_hold(self, prompt_tokens: int, final_tokens: int, n: int) -> bool:
        """See AllocatorAdapter."""
        return self._allocator.can_ever_hold(prompt_tokens, final_tokens, n)


class Paged(ReferenceAllocator):
    """PagedAllocator."""

    capabilities = ReferenceAllocator.capabilities | {"sharing", "paged", "prefix_cache", "extra_keys"}
    kind = "PagedAllocator"

    def unsupported(self, case: Pool) -> list[str]:
        """See AllocatorAdapter."""
        return []

    def reset(self, pool: Pool) -> None:
        """See AllocatorAdapter."""
        self._pool, self._texts = pool, {}
        self._allocator = PagedAllocator(pool.num_blocks, pool.block_size, prefix_caching=pool.caching)

    def computed(self, seq: int, num_tokens: int) -> None:
        """See AllocatorAdapter."""
        if self._pool.caching:
            self._allocator.publish(seq, self._keys(seq, num_tokens))


class Contiguous(ReferenceAllocator):
    """ContiguousAllocator, which reserves what a sequence may need in the end."""

    kind = "ContiguousAllocator (reservation max)"

    def unsupported(self, case: Pool) -> list[str]:
        """See AllocatorAdapter."""
        return ["a contiguous cache shares nothing, so there is nothing to be found again"] if case.caching else []

    def reset(self, pool: Pool) -> None:
        """See AllocatorAdapter."""
        self._pool, self._texts = pool, {}
        self._allocator = ContiguousAllocator(pool.num_blocks, pool.block_size, pool.max_tokens)


def paged() -> Paged:
    """The adapter `reference-paged`."""
    return Paged()


def contiguous() -> Contiguous:
    """The adapter `reference-contiguous`."""
    return Contiguous()

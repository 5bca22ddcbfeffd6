"""What an implementation of paged attention is asked for: the protocol, over one canonical layout of the cache.

    cache.key, cache.value   [num_blocks, block_size, num_kv_heads, head_dim], value: value_dim; any strides whose last
                             dim is contiguous
    cache.*_scale            float32, where the storage is int8 or float8_e4m3fn: real value = stored * scale; of shape
                             [], [num_kv_heads] or [num_blocks, block_size, num_kv_heads]
    slot                     block * block_size + offset in the block
    block_tables             [num_seqs, max_blocks]: entry b of sequence s is the block of its positions
                             [b * block_size, (b + 1) * block_size)
    context_lens             [num_seqs]: positions of each sequence, those of its query rows included; may be 0
    query_start_loc          [num_seqs + 1]: sequence s has the query rows [query_start_loc[s], query_start_loc[s + 1])

Row j of n stands at position p = context_len - n + j and sees the positions [0, p], with a window W [p - W + 1, p].
Its score for a key is q . k * scale; with a soft cap c it becomes c * tanh(score / c); with ALiBi slopes,
slope[q head] * (key position - p) is added then. Query head h reads KV head h // (num_q_heads // num_kv_heads).
The result of a row that sees nothing is 0, its LSE -inf. LSE is the natural logarithm of the sum of exp(score).

An adapter converts this to its own layout. It never falls back: what it cannot do, `unsupported` says beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from pabench.conformance.kernel.cases import Case

if TYPE_CHECKING:  # the vocabulary is read where there is no torch
    import torch

# What an adapter may have beside `attend`: the log-sum-exp of each row, and the methods of the three protocols below.
CAPABILITIES = frozenset({"lse", "write", "copy", "merge"})


class Cache(NamedTuple):
    """One layer's keys and values. Scales are None where the storage needs none."""

    key: torch.Tensor
    value: torch.Tensor
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be attended to. Shapes as in the module's docstring."""

    query: torch.Tensor            # [num_tokens, num_q_heads, head_dim], last dim contiguous
    cache: Cache
    block_tables: torch.Tensor     # int32 or int64, as the next two
    context_lens: torch.Tensor
    query_start_loc: torch.Tensor
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    alibi_slopes: torch.Tensor | None = None  # [num_q_heads] float32
    shared_prefix_len: int = 0     # the first so many positions stand in the same blocks in all sequences
    with_lse: bool = False         # only with the capability "lse"; the entry to take, where there are two


@runtime_checkable
class Adapter(Protocol):
    """The least that an implementation brings."""

    capabilities: frozenset[str]   # of CAPABILITIES
    device: str                    # where the tensors have to be: "cpu", "cuda"

    def describe(self) -> str:
        """What really runs: names, versions."""
        ...

    def unsupported(self, case: Case) -> list[str]:
        """Why `case` cannot be asked of it, a reason an entry; none: it can, and an error then is a failure."""
        ...

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Result [num_tokens, num_q_heads, value_dim] in the queries' dtype, and LSE [num_tokens, num_q_heads] float32.

        The LSE is None where the batch does not ask for it.
        """
        ...


class Writes(Protocol):
    """With the capability "write"."""

    def write(self, key: torch.Tensor, value: torch.Tensor, cache: Cache, slot_mapping: torch.Tensor) -> None:
        """Write key and value [num_tokens, num_kv_heads, dim] into slots [num_tokens]; none where that is negative.

        Scales a slot are written too; scales of a head or of all are given, and only used.
        """
        ...


class Copies(Protocol):
    """With the capability "copy"."""

    def copy_blocks(self, source: Cache, target: Cache, pairs: torch.Tensor) -> None:
        """Copy blocks pairs [n, 2] (from, to) with their scales, all as if at once. Both caches may be one."""
        ...


class Merges(Protocol):
    """With the capability "merge"."""

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From outs [parts, rows, heads, dim] and lses [parts, rows, heads] over disjoint positions the whole's.

        Both in any strides.
        """
        ...

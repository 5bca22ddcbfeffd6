"""What is measured: batches of equal sequences, as models have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Shape:
    """One batch: `batch` sequences of `context` positions, the last `rows` of each being queries (1: decode)."""

    model: str
    batch: int
    context: int
    rows: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    storage: str  # dtype of the cache; queries are in it too, or in bfloat16 over fp8

    @property
    def storage_dtype(self) -> torch.dtype:
        """Of keys and values."""
        dtype: torch.dtype = getattr(torch, self.storage)
        return dtype

    @property
    def query_dtype(self) -> torch.dtype:
        """Of queries and results."""
        return torch.bfloat16 if self.storage.startswith("float8") else self.storage_dtype

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the whole batch."""
        elements = 2 * self.batch * self.context * self.num_kv_heads * self.head_dim
        return elements * self.storage_dtype.itemsize

    @property
    def moved_bytes(self) -> int:
        """The least that has to be moved: keys and values read once, queries read, results written."""
        queries = self.batch * self.rows * self.num_q_heads * self.head_dim
        return self.kv_bytes + 2 * queries * self.query_dtype.itemsize

    @property
    def flops(self) -> int:
        """Of both matrix products: a row at position p has p + 1 keys."""
        first = self.context - self.rows
        keys = sum(range(first + 1, self.context + 1))
        return 4 * self.batch * self.num_q_heads * self.head_dim * keys

    @property
    def checked(self) -> tuple[list[int], list[int], list[int]]:
        """Sequences, query rows of each, and KV heads whose results are checked: first, last and some between."""
        return _spread(self.batch, 3), _spread(self.rows, 7), _spread(self.num_kv_heads, 2)

    def __str__(self) -> str:
        what = "decode" if self.rows == 1 else f"prefill {self.rows}"
        return f"{self.model} {what}, batch {self.batch} x {self.context}, block {self.block_size}, {self.storage}"


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of range(count), the ends among them."""
    return sorted({i * (count - 1) // (most - 1) for i in range(most)})


_MODELS = {"Llama-8B": (32, 8, 128), "Llama-70B": (64, 8, 128), "MQA": (32, 1, 128)}
_DECODES = [(1, 128), (1, 4096), (1, 65536), (1, 131072), (8, 4096), (8, 32768), (32, 1024), (32, 4096), (32, 16384),
            (64, 4096), (128, 4096), (256, 1024), (256, 4096)]


def shapes(which: str) -> Iterator[Shape]:
    """`full`, the most telling first; or `smoke`, which Triton's interpreter gets through."""
    if which == "smoke":
        for rows, block_size in ((1, 16), (1, 4), (24, 16)):
            yield Shape("tiny", 2, 96, rows, 4, 2, 32, block_size, "float32")
        return
    for model, (q_heads, kv_heads, head_dim) in _MODELS.items():
        for storage in ("bfloat16", "float8_e4m3fn"):
            for block_size in (16, 128):
                if block_size == 128 and model != "Llama-8B":
                    continue
                for batch, context in _DECODES:
                    yield Shape(model, batch, context, 1, q_heads, kv_heads, head_dim, block_size, storage)
                    if (batch, context) == (32, 4096):  # the chunk, among the first
                        yield Shape(model, 1, 8192, 8192, q_heads, kv_heads, head_dim, block_size, storage)
                        if (model, storage, block_size) == ("Llama-8B", "bfloat16", 16):  # the one for FlashAttention
                            yield Shape(model, batch, context, 1, q_heads, kv_heads, head_dim, 256, storage)

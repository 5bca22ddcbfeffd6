"""Cases as Hypothesis draws them: small, with lengths at edges, and every option in some of them.

Lengths lie around edges of blocks and of tiles rather than being long: an interpreter runs the kernels too. What is
large, many sequences, tokens or pairs, is so in cases of its own, which are small in all else.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pabench.conformance.kernel.cases import (
    ARGUMENTS,
    DTYPES,
    FILLS,
    NUMBERS,
    SCALED,
    SCALES,
    STORAGE,
    TAILS,
    AttendCase,
    CacheForm,
    CopyCase,
    MergeCase,
    WriteCase,
)

GROUPS = (71, 32, 17, 16, 12, 8, 7, 5, 3, 2, 1)
HEAD_DIMS = (64, 80, 96, 112, 120, 128, 160, 192, 256)
BLOCK_SIZES = (1, 2, 3, 5, 8, 16, 24, 32, 64, 128, 256)
TILES = (16, 32, 64, 128)
SEEDS = st.integers(0, 2**16)
_LAYOUTS = ("plain", "hnd", "combined", "padded")
ROWS = ("decode", "prefill", "chunk", "mixed")
_LONGEST = {"decode": 130, "prefill": 34, "chunk": 66, "mixed": 50}  # many rows are slow in an interpreter

# Where splits of 256, 512 and 1024 positions end, and those of 2048 that chunks have.
_SPLIT_EDGES = (255, 256, 257, 300, 511, 512, 513, 769, 1023, 1025)
_CHUNK_EDGES = (2047, 2048, 2049, 2050)
_VERY_LONG = (4097, 8195)


def edges(block_size: int, longest: int) -> list[int]:
    """Lengths up to `longest` at, one before and one behind the ends of blocks and tiles."""
    ends = {size * k + off for size in (block_size, *TILES) for k in (1, 2, 3) for off in (-1, 0, 1)}
    return sorted({1, longest, *(end for end in ends if 1 <= end <= longest)})


def lengths(block_size: int, longest: int) -> st.SearchStrategy[int]:
    """A length of a context: at an edge, or any."""
    return st.sampled_from(edges(block_size, longest)) | st.integers(1, longest)


@st.composite
def forms(draw: st.DrawFn, /, **fixed: Any) -> CacheForm:
    """Any cache, but for what `fixed` says. Never far: that takes a case of its own."""
    values: dict[str, Any] = {
        "block_size": draw(st.sampled_from(BLOCK_SIZES)), "num_kv_heads": draw(st.sampled_from((1, 1, 1, 2, 3))),
        "head_dim": draw(st.sampled_from((16, 32, 64, 80))), "storage": draw(st.sampled_from(STORAGE)),
        "layout": draw(st.sampled_from(_LAYOUTS)),
    } | fixed
    values.setdefault("value_dim", values["head_dim"])
    if values["storage"] in SCALED:
        values.setdefault("scales", draw(st.sampled_from(SCALES)))
    else:
        values["scales"] = ""
    if values["value_dim"] != values["head_dim"] and values["layout"] == "combined":
        values["layout"] = "plain"
    return CacheForm(**values)


@st.composite
def attend_cases(
    draw: st.DrawFn, /, *, rows: str = "mixed", form: st.SearchStrategy[CacheForm] | None = None,
    longest: int | None = None, max_seqs: int | None = None, **fixed: Any,
) -> AttendCase:
    """Any batch whose sequences have rows as ROWS says, but for what `fixed` says."""
    cache = draw(forms() if form is None else form)
    longest = longest or _LONGEST[rows]
    max_seqs = max_seqs or (4 if rows == "decode" else 2 if rows == "prefill" else 3)
    num_seqs = draw(st.integers(1, max_seqs))
    contexts = draw(st.lists(lengths(cache.block_size, longest), min_size=num_seqs, max_size=num_seqs))
    values: dict[str, Any] = {
        "form": cache, "group": draw(st.sampled_from((1, 2, 3, 5))), "seed": draw(SEEDS),
        "placement": draw(st.integers(0, 99)),
        "dtype": draw(st.sampled_from(DTYPES if cache.storage in SCALED else sorted({"float32", cache.storage}))),
        "window": draw(st.none() | st.integers(1, longest)),
        "soft_cap": draw(st.none() | st.sampled_from((0.5, 2.0, 30.0))), "alibi": draw(st.booleans()),
        "with_lse": draw(st.booleans()),
        "tail": draw(st.sampled_from(TAILS)), "arguments": draw(st.sampled_from(ARGUMENTS)),
        "fill": draw(st.sampled_from(("nan", *FILLS[:-1]))), "scale": draw(st.none() | st.sampled_from((0.05, 0.3))),
        "context_lens": tuple(contexts), "shared_prefix_len": 0,
    } | fixed
    prefix: int = values["shared_prefix_len"]
    behind: tuple[int, ...] = values["context_lens"]  # of a shared prefix
    values["context_lens"] = tuple(n + prefix for n in behind)
    values.setdefault("query_lens", tuple(draw(_rows(rows, n)) for n in behind))
    return AttendCase(**values)


def plain_cases(rows: str = "mixed", form: dict[str, Any] | None = None, **fixed: Any) -> st.SearchStrategy[AttendCase]:
    """Batches with no option but those in `form` and `fixed`: what every kernel can do."""
    usual: dict[str, Any] = {"window": None, "soft_cap": None, "alibi": False, "with_lse": False, "scale": None,
                             "fill": "nan", "tail": "poison", "arguments": "int32", "group": 2}
    size: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_dim": 64, "layout": "plain"} | (form or {})
    if "storage" in size:
        return attend_cases(rows=rows, form=forms(**size), **usual | fixed)
    return st.sampled_from(DTYPES).flatmap(lambda name: attend_cases(
        rows=rows, form=forms(**size, storage=name), **usual | {"dtype": name} | fixed))


def long_cases() -> st.SearchStrategy[AttendCase]:
    """Decodes, drafts and chunks around the lengths where kernels cut a context in parts, any options among them.

    Small heads, few rows, two sequences at most: the contexts are what is long, and an interpreter runs them too.
    """
    small = st.sampled_from((16, 32)).flatmap(lambda dim: forms(head_dim=dim, num_kv_heads=1))
    windows = st.none() | st.integers(1, 40) | st.integers(200, 1100)

    def of(lens: tuple[int, ...], rows: tuple[int, int], most: int) -> st.SearchStrategy[AttendCase]:
        contexts = st.lists(st.sampled_from(lens), min_size=1, max_size=most).map(tuple)
        return st.tuples(contexts, windows).flatmap(lambda drawn: st.lists(
            st.integers(*rows), min_size=len(drawn[0]), max_size=len(drawn[0])).map(tuple).flatmap(
                lambda counts: attend_cases(form=small, context_lens=drawn[0], query_lens=counts, window=drawn[1])))

    decodes, drafts = of(_SPLIT_EDGES, (1, 1), 2), of(_SPLIT_EDGES, (1, 8), 2)
    return st.sampled_from((decodes, decodes, drafts, drafts, of(_CHUNK_EDGES, (9, 12), 1))).flatmap(lambda each: each)


def very_long_cases(rows: str) -> st.SearchStrategy[AttendCase]:
    """One sequence past 4096 positions or past 8192, of which everything else is small."""
    form = {"num_kv_heads": 1, "head_dim": 16, "storage": "float32"}
    return st.sampled_from(_VERY_LONG).flatmap(lambda context: plain_cases(
        rows=rows, form=form, context_lens=(context,), max_seqs=1, dtype="float32"))


def crowd_cases(num_seqs: int) -> st.SearchStrategy[AttendCase]:
    """So many sequences, each of a few positions, in decodes or in chunks too, with any options."""
    form = forms(num_kv_heads=1, head_dim=16)
    contexts = st.lists(st.integers(1, 9), min_size=num_seqs, max_size=num_seqs).map(tuple)
    return st.tuples(contexts, st.sampled_from(("decode", "decode", "chunk"))).flatmap(lambda drawn: attend_cases(
        rows=drawn[1], form=form, longest=9, context_lens=drawn[0], group=1))


def _rows(rows: str, context: int) -> st.SearchStrategy[int]:
    """Query rows of a sequence of so many positions."""
    if context == 0:
        return st.just(1)
    chunk = st.integers(1, min(context, 10))
    return {"decode": st.just(1), "prefill": st.just(context), "chunk": chunk,
            "mixed": st.sampled_from((1, context)) | chunk}[rows]


@st.composite
def write_cases(
    draw: st.DrawFn, /, *, form: st.SearchStrategy[CacheForm] | None = None, pads: bool = True, **fixed: Any
) -> WriteCase:
    """New keys and values into some slots in any order, some tokens into none."""
    cache = draw(forms(block_size=draw(st.sampled_from((1, 2, 3, 8, 16)))) if form is None else form)
    num_blocks = draw(st.integers(1, 4))
    slots = draw(st.lists(st.integers(0, num_blocks * cache.block_size - 1), min_size=1, max_size=12, unique=True))
    if pads:
        slots = [-1 if pad else slot for slot, pad in zip(slots, draw(st.lists(
            st.sampled_from((False, False, True)), min_size=len(slots), max_size=len(slots))), strict=True)]
    values: dict[str, Any] = {
        "slots": tuple(slots), "num_blocks": num_blocks, "form": cache, "dtype": draw(st.sampled_from(DTYPES)),
        "numbers": draw(st.sampled_from(NUMBERS)), "arguments": draw(st.sampled_from(ARGUMENTS)), "seed": draw(SEEDS),
    } | fixed
    return WriteCase(**values)


def many_written(num_tokens: int) -> st.SearchStrategy[WriteCase]:
    """So many tokens into adjacent blocks in any order, and two that are written nowhere among them."""
    form = forms(block_size=16, num_kv_heads=1, head_dim=16)
    return st.permutations(range(num_tokens + 2)).flatmap(lambda order: write_cases(
        form=form, num_blocks=-(-num_tokens // 16), slots=tuple(at if at < num_tokens else -1 for at in order)))


@st.composite
def copy_cases(draw: st.DrawFn, /, *, form: st.SearchStrategy[CacheForm] | None = None, **fixed: Any) -> CopyCase:
    """Blocks to blocks: within a cache, where a source may be another's target, or into another cache."""
    cache = draw(forms(block_size=draw(st.sampled_from((1, 2, 3, 8, 16)))) if form is None else form)
    num_blocks = draw(st.integers(1, 6))
    target_blocks = draw(st.none() | st.integers(1, 6))
    targets = draw(st.lists(st.integers(0, (target_blocks or num_blocks) - 1), max_size=6, unique=True))
    pairs = tuple((draw(st.integers(0, num_blocks - 1)), target) for target in targets)
    values: dict[str, Any] = {"pairs": pairs, "num_blocks": num_blocks, "target_blocks": target_blocks, "form": cache,
                              "seed": draw(SEEDS)} | fixed
    return CopyCase(**values)


def many_copied(num_pairs: int) -> st.SearchStrategy[CopyCase]:
    """So many small blocks into any others, of another cache or of the same."""
    form = forms(block_size=2, num_kv_heads=1, head_dim=16)
    blocks = num_pairs + 2
    return st.tuples(st.permutations(range(blocks)), st.sampled_from((blocks, None))).flatmap(lambda drawn: copy_cases(
        form=form, num_blocks=blocks, target_blocks=drawn[1], pairs=tuple(enumerate(drawn[0][:num_pairs]))))


@st.composite
def merge_cases(draw: st.DrawFn, /, **fixed: Any) -> MergeCase:
    """Partial results, some of which have seen nothing, with LSE close together or far apart, some in other strides."""
    # Many parts too: kernels take a fixed number of them at a time.
    parts, rows = draw(st.integers(1, 5) | st.sampled_from((8, 9, 17, 33, 65, 130))), draw(st.integers(1, 4))
    pair = st.tuples(st.integers(0, parts - 1), st.integers(0, rows - 1))
    values: dict[str, Any] = {
        "parts": parts, "rows": rows, "heads": draw(st.sampled_from((1, 2, 3, 8))),
        "dim": draw(st.sampled_from((16, 64, 80, 128))), "dtype": draw(st.sampled_from(DTYPES)),
        "spread": draw(st.sampled_from((1.0, 10.0, 100.0))),
        "empty": tuple(draw(st.lists(pair, max_size=min(parts * rows, 20), unique=True))),
        "views": draw(st.booleans()), "seed": draw(SEEDS),
    } | fixed
    return MergeCase(**values)

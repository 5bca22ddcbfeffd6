"""From a wrong answer to what was read wrongly: block, slot, layer, head, and whose data was read instead.

Each output is judged in its own context: given the token before it (right or wrong), what must follow? So one bad
read does not make every later token look bad, and the pattern over all bad reads can be named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from pabench.probe.prompts import ProbePrompt
from pabench.probe.spec import SEP, ProbeSpec


@dataclass(frozen=True, slots=True)
class Misread:
    """One output that does not follow from the token before it. Heads are (layer, query head)."""

    index: int                          # output number, from 0
    expected: int
    actual: int
    position: int                       # cache position that should have been read: the prompt's, or a generated one
    heads: tuple[tuple[int, int], ...]  # those whose bit is wrong


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a wrong answer says about the KV cache. `str()` is the text for an implementer."""

    index: int
    expected: int
    actual: int
    position: int
    block: int | None
    slot: int | None
    kind: str                            # "not found" | "foreign" | "own" | "unknown"
    owner: str | None                    # whose token was read, for "foreign"
    owner_position: int | None           # where it stands there (or here, for "own")
    heads: tuple[tuple[int, int], ...]   # wrong in any misread
    kv_heads: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]           # all positions misread
    misreads: int
    outputs: int
    hint: str
    block_size: int | None = None

    def to_json(self) -> str:
        """All fields and the text."""
        return json.dumps(asdict(self) | {"text": str(self)})

    def __str__(self) -> str:
        place = f"position {self.position}"
        if self.block is not None:
            place += f" -> block {self.block}, slot {self.slot}"
        read = {"not found": "<sep>: the lookup found no key (wrong prefix, damaged or missing key)",
                "foreign": f"t{self.actual} = {self.owner}, position {self.owner_position}",
                "own": f"t{self.actual}, its own position {self.owner_position}",
                "unknown": f"t{self.actual}, in no prompt: single bits are wrong"}[self.kind]
        reads = f"{self.misreads} of {self.outputs} outputs misread, {self._heads_text()}{self._place_text()}"
        return (f"expected  output {self.index} = t{self.expected} ({place})\n"
                f"actual    {read}\nreads     {reads}\nhint      {self.hint}")

    def _heads_text(self) -> str:
        layers = sorted({layer for layer, _ in self.heads})
        heads = {layer: _ranges(head for at, head in self.heads if at == layer) for layer in layers}
        named = ", ".join(f"layer {layer} heads {numbers}" for layer, numbers in heads.items())
        return f"wrong in {named}" if named else "no bit wrong"

    def _place_text(self) -> str:
        if self.block_size is None:
            return f", at positions {_ranges(self.positions)}"
        blocks = sorted({position // self.block_size for position in self.positions})
        if len(blocks) > 1:
            return f", in blocks {_ranges(blocks)}"
        return f", only in block {blocks[0]} slots {_ranges(p % self.block_size for p in self.positions)}"


def diagnose(
    spec: ProbeSpec,
    prompt: ProbePrompt,
    ids: Sequence[int],
    *,
    block_size: int | None,
    others: Sequence[ProbePrompt] = (),
    names: Sequence[str] = (),
) -> Diagnosis | None:
    """What the generated `ids` say about the cache; None when nothing is wrong.

    `others` are the prompts that shared the engine with this one, `names` what to call them ("request 3" by default).
    """
    misreads = list(_misreads(spec, prompt, ids))
    if not misreads:
        return None
    first = misreads[0]
    kind, owner, owner_position = _whose(first.actual, prompt, others, names)
    heads = tuple(sorted({head for misread in misreads for head in misread.heads}))
    kv_heads = tuple(sorted({(layer, spec.kv_head_of(head)) for layer, head in heads}))
    positions = tuple(sorted({misread.position for misread in misreads}))
    hint = _hint(spec, kind, kv_heads, positions, block_size, len(prompt.prompt), len(misreads))
    if spec.full_layers:
        hint = _layers_hint(spec, heads) or hint
    elif spec.window is not None:
        hint = _window_hint(spec.window, prompt, ids, first) or hint
    return Diagnosis(
        index=first.index, expected=first.expected, actual=first.actual, position=first.position,
        block=None if block_size is None else first.position // block_size,
        slot=None if block_size is None else first.position % block_size,
        kind=kind, owner=owner, owner_position=owner_position, heads=heads, kv_heads=kv_heads, positions=positions,
        misreads=len(misreads), outputs=len(ids), block_size=block_size,
        hint=hint,
    )


def _misreads(spec: ProbeSpec, prompt: ProbePrompt, ids: Sequence[int]) -> Iterable[Misread]:
    """Each bad read. A token that was read rightly before has a second slot by now, where it was generated: the first
    slot has proved good, so the generated one is blamed.
    """
    # What is read is the token behind the one before: it alone may stand in several places, as a ring's first one does.
    places: dict[tuple[int, int], int] = {}  # (token before, token) -> first position in the prompt, or latest copy
    behind: dict[int, int] = {}              # token -> the position behind its latest place
    for position, pair in enumerate(pairwise(prompt.prompt), 1):
        if spec.window is not None or pair not in places:  # the latest place alone is in a window
            places[pair] = position
        behind[pair[0]] = position
    current, start = prompt.prompt[-1], len(prompt.prompt)
    for index, token in enumerate(ids):
        allowed = prompt.successors(current)
        if allowed and token not in allowed:
            expected = min(allowed, key=lambda wanted: (wanted ^ token).bit_count())
            wrong = expected ^ token
            heads = tuple(spec.head_of(bit) for bit in range(spec.bits) if wrong >> bit & 1)
            # Of a probe with windows in some layers, no place of the prompt holds all that is right.
            yield Misread(index, expected, token, places.get((current, expected), behind[current]), heads)
        elif allowed:
            places[current, token] = start + index
        current = token


def _layers_hint(spec: ProbeSpec, heads: Sequence[tuple[int, int]]) -> str:
    """What it says that one kind of layer alone misreads; "" where both do."""
    wrong = {layer in spec.full_layers for layer, _ in heads}
    if wrong == {True}:
        return (f"layers that see everything alone read wrongly: was a block taken from them that had left the window "
                f"of {spec.window} tokens, which they do not have?")
    if wrong == {False}:
        return (f"layers with a window of {spec.window} tokens alone read wrongly: do they see what has left it, or "
                "was a block taken that a step still reads?")
    return ""


def _window_hint(window: int, prompt: ProbePrompt, ids: Sequence[int], misread: Misread) -> str:
    """What a misread at an edge of the window says; "" where it is at none."""
    before = (*prompt.prompt, *ids[: misread.index])  # of its last token the next one is made
    edge = max(0, len(before) - window)
    if misread.position == edge:
        return (f"the first position of the window of {window} tokens was not read: a row at p sees [p - W + 1, p], "
                "and a block may go when no step reads it any more")
    left = [token for token, other in pairwise(reversed(before[:edge])) if other == before[-1]]
    if left and misread.actual not in before[edge:]:  # one of them, or of several bits of each
        return f"what had left the window of {window} tokens was read: a row at p sees [p - W + 1, p]"
    return ""


def _whose(
    token: int, prompt: ProbePrompt, others: Sequence[ProbePrompt], names: Sequence[str]
) -> tuple[str, str | None, int | None]:
    if token == SEP:
        return "not found", None, None
    own = prompt.owner(token)
    if own is not None:
        return "own", None, own
    for i, other in enumerate(others):
        position = other.owner(token)
        if position is not None:
            return "foreign", names[i] if i < len(names) else f"request {i}", position
    return "unknown", None, None


def _hint(
    spec: ProbeSpec, kind: str, kv_heads: tuple[tuple[int, int], ...], positions: tuple[int, ...],
    block_size: int | None, prompt_len: int, misreads: int,
) -> str:
    """The most specific pattern that fits all misreads. One misread alone is no pattern of layers, heads or slots."""
    layers = {layer for layer, _ in kv_heads}
    heads = {head for _, head in kv_heads}
    slots = {position % block_size for position in positions} if block_size else set()
    blocks = {position // block_size for position in positions} if block_size else set()
    edges = len(blocks) > 1 and block_size != 1
    patterns = (
        (kind == "foreign",
         "another request's data was read: block table, a block reused too early, or a write into a shared block"),
        (min(positions) >= prompt_len and kind == "not found",
         "nothing was found where two slots hold it, the prompt's and the generated one: both are lost, or the "
         "prompt's first block is, with the salt that every key depends on"),
        (min(positions) >= prompt_len,
         "the prompt's slots are right, generated ones are not: a shared block written without a copy, or positions "
         "and slots of decode"),
        (misreads > 1 and len(layers) == 1,
         f"only layer {min(layers, default=0)}: check the layer stride of the cache"),
        (misreads > 1 and len(heads) == 1 and spec.num_kv_heads > 1,
         f"only KV head {min(heads, default=0)}: check the head stride, the group map and the head's scale"),
        (len(kv_heads) == 1 and len(positions) == 1,
         "one slot of one KV head: damaged, or overwritten in part, after it was written"),
        (edges and slots == {(block_size or 0) - 1}, "only the last slot of blocks: an off-by-one at the block edge"),
        (edges and slots == {0}, "only the first slot of blocks: an off-by-one at the block edge"),
        (len(blocks) == 1 and len(slots) > 1,
         f"only block {min(blocks, default=0)}: overwritten, never written, or its table entry is wrong"),
        (kind == "not found",
         "keys do not match their prefix: a block computed behind another prefix, or keys never written"),
    )
    fallback = "values do not belong to their keys: check the write of V, the block table and the split over lanes"
    return next((text for fits, text in patterns if fits), fallback)


def _ranges(numbers: Iterable[int]) -> str:
    """ "1..3, 7" for 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in parts)

"""A trace, played on the manager under test and on the model, operation by operation.

    allocate  tokens, extra    a new sequence
    compute   i, k             a step computes the next k tokens of sequence i
    append    i, tokens        sequence i gets more tokens; first a step computes what it still lacks
    fork      i                a new sequence with the contents of i; first a step computes what i still lacks
    truncate  i, k             the last k tokens of i that are not computed are taken back
    swap_out  i, swap_in i     to host memory, and back
    free      i                wherever it is: those in host memory are counted last
    finish    i                first a step computes what i still lacks, then as free

`i` counts the sequences there are, modulo their number, so that a trace without some of its operations is a trace
too. What makes no sense where it stands (fork of nothing) is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pabench.conformance.alloc.adapter import Copies, Pool
from pabench.conformance.alloc.model import Block, Held, Memory, Prefixes
from pabench.conformance.implementation import blamed

Operation = list[Any]  # its name, and what the module's text says
_OF_COMPUTED = ("append", "fork", "swap_out", "finish")


@dataclass(slots=True)
class Step:
    """What an operation did. `held` is the sequence that it made or changed, `before` its table before it."""

    operation: str
    held: Held
    refused: bool
    free_before: int
    free_after: int
    tables_before: dict[str, list[Block | None]]
    num_cached: int = 0                                   # allocate, swap_in: tokens that were found
    num_resident: int = 0                                 # allocate: whole blocks that were there to be found
    written: list[int] = field(default_factory=list)      # compute: positions
    copies: list[tuple[Block, Block]] = field(default_factory=list)
    num_asked: int = 0                                    # append: tokens
    parent: Held | None = None                            # fork: of whom
    cost: int | None = None                               # what the manager foretold: blocks; None, a refusal
    foretold: bool = False                                # whether it was asked

    @property
    def before(self) -> list[Block | None]:
        """The table of the sequence before the operation."""
        return self.tables_before.get(self.held.name, [])

    @property
    def held_before(self) -> set[Block]:
        """All blocks that sequences held before the operation."""
        return {block for table in self.tables_before.values() for block in table if block is not None}


class Play:
    """One trace on one pool. Iterate over it: each step has just been done. `log` has a line for each."""

    def __init__(self, adapter: Any, pool: Pool, operations: Sequence[Operation]) -> None:
        self.adapter, self.pool, self.operations = adapter, pool, operations
        self.prefixes = Prefixes()
        self.memory, self.host = Memory(pool.block_size), Memory(pool.block_size)
        self.live: list[Held] = []     # those that hold blocks
        self.swapped: list[Held] = []
        self.log: list[str] = []
        self.served: set[str] = set()  # operations of which one was not refused; "hit": something was found
        self._num_seqs = 0

    def begin(self) -> None:
        """With an empty pool."""
        with blamed("reset"):
            self.adapter.reset(self.pool)

    def __iter__(self) -> Iterator[Step]:
        """Begin, and do one operation after the other."""
        self.begin()
        for name, *arguments in self.operations:
            yield from self._steps(name, arguments)

    def _steps(self, name: str, arguments: list[Any]) -> Iterator[Step]:
        """Do one operation: what has to be computed for it is a step before it; none where it makes no sense."""
        do: Callable[..., Step | None] = self.free if name == "finish" else getattr(self, name)
        if name == "allocate":
            step = do(*arguments)
        else:
            which = {"swap_in": self.swapped, "free": self.live + self.swapped}.get(name, self.live)
            if not which:
                return
            held = which[arguments[0] % len(which)]
            if name in _OF_COMPUTED and (before := self.compute(held)) is not None:
                yield before
            step = do(held, *arguments[1:])
        if step is not None:
            yield step

    # Operations --------------------------------------------------------------------------------------------------

    def allocate(self, tokens: Sequence[int], extra: Sequence[str] = ()) -> Step | None:
        """A new sequence."""
        tokens = list(tokens)[: self.pool.max_tokens]
        if not tokens:
            return None
        held = self._new(tokens, extra if "extra_keys" in self.adapter.capabilities else ())
        resident = self.memory.resident(held.prefixes)
        cost = self._cost("allocate", held, tokens, held.extra)
        step = self._begin("allocate", held, cost)
        with blamed(f"allocate({held.name}, {len(tokens)} tokens)"):
            found = self.adapter.allocate(held.seq, tokens, held.extra)
            found = None if found is None else int(found)
        step.refused, step.num_resident = found is None, resident
        if found is not None:
            step.num_cached = held.num_computed = found
            held.num_dropped = self._num_unreached(found)
            self.live.append(held)
        said = f"allocate {held.name}: {self._text(tokens, held.extra)}"
        return self._end(step, said, f"{step.num_cached} tokens found" if self.pool.caching else "")

    def compute(self, held: Held, count: int = 10**9) -> Step | None:
        """A step writes the next tokens of a sequence."""
        start, size = held.num_computed, self.pool.block_size
        stop = min(start + count, held.num_tokens)
        if stop <= start:
            return None
        step = self._begin("compute", held)
        step.written = list(range(start, stop))
        for position in step.written:
            if position // size < len(held.table):
                self.memory.write(held.table[position // size], position % size, held.prefixes[position])
        held.num_computed = stop
        if self.pool.caching:
            for at in range(start // size, min(stop // size, len(held.table))):
                if held.table[at] is not None:
                    self.memory.complete(held.table[at], held.prefixes[(at + 1) * size - 1])
        if "prefix_cache" in self.adapter.capabilities and self.pool.caching:
            with blamed(f"computed({held.name}, {stop})"):
                self.adapter.computed(held.seq, stop)
        if self.pool.window is not None:
            held.num_dropped = held.num_slid = max(held.num_dropped, self._num_unreached(stop))
            with blamed(f"slide({held.name}, {held.num_dropped})"):
                self.adapter.slide(held.seq, held.num_dropped)
        return self._end(step, f"compute {held.name}: tokens {start} to {stop - 1}")

    def append(self, held: Held, tokens: Sequence[int]) -> Step | None:
        """More tokens for a sequence."""
        tokens = list(tokens)[: self.pool.max_tokens - held.num_tokens]
        if not tokens:
            return None
        self.compute(held)
        step = self._begin("append", held, self._cost("append", held, tokens, ()))
        step.num_asked = len(tokens)
        with blamed(f"append({held.name}, {len(tokens)} tokens)"):
            copies = _pairs(self.adapter.append(held.seq, tokens))
        step.refused = copies is None
        self._copy(step, copies)
        if not step.refused:
            for token in tokens:
                held.tokens.append(token)
                held.prefixes.append(self.prefixes.behind(held.prefixes[-1], token))
        return self._end(step, f"append {held.name}: {' '.join(map(str, tokens))}")

    def fork(self, held: Held) -> Step:
        """A second sequence with the contents of the first."""
        self.compute(held)
        child = self._new(held.tokens, held.extra)
        step = self._begin("fork", child)
        step.parent = held
        with blamed(f"fork({held.name}, {child.name})"):
            copies = _pairs(self.adapter.fork(held.seq, child.seq))
        step.refused = copies is None
        self._copy(step, copies)
        if not step.refused:
            child.num_computed, child.num_dropped = held.num_computed, held.num_dropped
            child.num_slid = held.num_slid
            self.live.append(child)
        return self._end(step, f"fork {child.name} from {held.name}")

    def truncate(self, held: Held, count: int) -> Step | None:
        """Tokens that were never computed are taken back."""
        keep = max(held.num_tokens - count, held.num_computed, 1)
        if keep == held.num_tokens:
            return None
        step = self._begin("truncate", held)
        with blamed(f"truncate({held.name}, {keep})"):
            self.adapter.truncate(held.seq, keep)
        del held.tokens[keep:], held.prefixes[keep:]
        return self._end(step, f"truncate {held.name} to {keep} tokens")

    def swap_out(self, held: Held) -> Step | None:
        """To host memory."""
        self.compute(held)
        step = self._begin("swap_out", held)
        with blamed(f"swap_out({held.name})"):
            copies = _pairs(self.adapter.swap_out(held.seq, held.num_computed))
        step.refused = copies is None
        if copies is not None:
            step.copies = copies
            self.host.copy(self.memory, step.copies)
            held.host = [target for _, target in step.copies]
            self.live.remove(held)
            self.swapped.append(held)
        return self._end(step, f"swap out {held.name}")

    def swap_in(self, held: Held) -> Step | None:
        """Back from host memory."""
        step = self._begin("swap_in", held)
        with blamed(f"swap_in({held.name})"):
            back = self.adapter.swap_in(held.seq)
            back = None if back is None else (int(back[0]), _pairs(back[1]) or [])
        step.refused = back is None
        if back is not None:
            step.num_cached, copies = back
            self.swapped.remove(held)
            self.live.append(held)
            held.host = None
            step.copies = copies
            self._hand_out(step)
            self.memory.copy(self.host, step.copies)
        return self._end(step, f"swap in {held.name}")

    def free(self, held: Held) -> Step:
        """All that a sequence holds, in host memory too."""
        step = self._begin("free", held)
        with blamed(f"free({held.name})"):
            self.adapter.free(held.seq)
        (self.live if held.host is None else self.swapped).remove(held)
        return self._end(step, f"free {held.name}" + ("" if held.host is None else ", in host memory"))

    # How -----------------------------------------------------------------------------------------------------------

    def num_free(self) -> int:
        """As the manager says."""
        with blamed("num_free_blocks()"):
            return int(self.adapter.num_free_blocks())

    def num_free_host(self) -> int:
        """Host blocks that nobody needs who was moved there."""
        return self.pool.host_blocks - sum(max(len(held.host or ()), self.num_blocks(held)) for held in self.swapped)

    def num_blocks(self, held: Held) -> int:
        """That the tokens of a sequence fill, the last one perhaps in part."""
        return -(-held.num_tokens // self.pool.block_size)

    def holders(self, block: Block) -> list[Held]:
        """The sequences whose tables have a block."""
        return [held for held in self.live if block in held.table]

    def tables(self) -> dict[str, list[Block | None]]:
        """Name -> table, of all that hold blocks."""
        return {held.name: list(held.table) for held in self.live}

    def look(self, held: Held) -> list[Block | None]:
        """The table of a sequence, as the manager says now."""
        with blamed(f"block_table({held.name})"):
            return list(self.adapter.block_table(held.seq))

    def _num_unreached(self, position: int) -> int:
        """Positions that the window of `position` has left behind; below 0 where it reaches over all."""
        return 0 if self.pool.window is None else position - self.pool.window + 1

    def _new(self, tokens: Sequence[int], extra: Sequence[str]) -> Held:
        prefix, prefixes = self.prefixes.root(extra), []
        for token in tokens:
            prefix = self.prefixes.behind(prefix, token)
            prefixes.append(prefix)
        self._num_seqs += 1
        return Held(self._num_seqs - 1, _name(self._num_seqs - 1), tuple(extra), list(tokens), prefixes)

    def _cost(self, what: str, held: Held, tokens: Sequence[int], extra: Sequence[str]) -> int | bool | None:
        if "cost" not in self.adapter.capabilities:
            return False
        with blamed(f"cost({what}, {held.name}, {len(tokens)} tokens)"):
            cost: int | None = self.adapter.cost(what, held.seq, list(tokens), extra)
        return cost

    def _begin(self, operation: str, held: Held, cost: int | bool | None = False) -> Step:
        free = self.num_free()
        step = Step(operation, held, False, free, free, self.tables())
        if cost is not False:
            step.foretold, step.cost = True, cost
        return step

    def _end(self, step: Step, said: str, more: str = "") -> Step:
        """Look at what has become of the tables."""
        for held in self.live:
            held.table = self.look(held)
        if step.operation not in ("swap_in", "compute"):
            self._hand_out(step)
        step.free_after = self.num_free()
        if step.refused:
            result = "refused"
        else:
            self.served |= {step.operation} | ({"hit"} if step.num_cached else set())
            holds = step.operation != "free" and step.held in self.live
            parts = [f"blocks {_blocks(step.held.table)}", *_copy_texts(step), more] if holds else []
            result = ", ".join(filter(None, parts))
        self.log.append(f"{said} -> {result}; {step.free_after} free" if result else f"{said}; {step.free_after} free")
        return step

    def _hand_out(self, step: Step) -> None:
        """Blocks that a sequence has got as new may not be found any more."""
        table = self.look(step.held) if step.held in self.live else []
        step.held.table = table
        kept = {block for block in step.before if block is not None}
        shared = set(table[: -(-step.num_cached // self.pool.block_size)])
        if step.operation == "fork":
            shared = step.held_before
        self.memory.hand_out(block for block in table if block is not None and block not in kept | shared)

    def _copy(self, step: Step, copies: list[tuple[Block, Block]] | None) -> None:
        step.copies = copies or []
        self.memory.copy(self.memory, step.copies)

    def _text(self, tokens: Sequence[int], extra: Sequence[str]) -> str:
        keys = f" [{', '.join(extra)}]" if extra else ""
        return " ".join(map(str, tokens)) + keys


def _pairs(copies: Copies | None) -> list[tuple[Block, Block]] | None:
    return None if copies is None else [(source, target) for source, target in copies]


def _name(number: int) -> str:
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _blocks(table: Sequence[Block | None]) -> str:
    return " ".join("-" if block is None else str(block) for block in table) or "none"


def _copy_texts(step: Step) -> list[str]:
    return [f"copy {source} to {target}" for source, target in step.copies]

"""`kernel`, what a test of this level holds.

    kernel.every(attend_cases(alibi=True), equals_dense)

draws cases, leaves out those that the adapter says it cannot do, and asks `equals_dense` of the others. The smallest
case that breaks it is what the failure tells and the case file keeps.
"""

from __future__ import annotations

import contextlib
import errno
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pabench.conformance.failure import fail, not_again
from pabench.conformance.implementation import ImplementationUnderTest, blamed, kept
from pabench.conformance.kernel.adapter import Batch, Cache
from pabench.conformance.kernel.cases import DTYPES, Case, case_from_json, case_to_json, in_words
from pabench.conformance.profiles import Profile
from pabench.conformance.targets import unsupported
from pabench.engines.cleaning import clean
from pabench.errors import EngineDied, RequirementFailed

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy

C = TypeVar("C", bound=Case)
_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory")
_MAX_WHY_CHARS = 120  # torch goes on with advice
_MOST_REFUSALS = 8  # times as many as cases are wanted: then an adapter that supports hardly any is let be


class KernelUnderTest(ImplementationUnderTest):
    """Paged attention under test, for one case."""

    def __init__(
        self, adapter: Any, profile: Profile, rng: np.random.Generator, drawn: Mapping[str, Any] | None
    ) -> None:
        super().__init__(adapter, profile, rng, drawn)
        self.device: str = adapter.device
        self.found: Case | None = None  # of a failure: the case that broke the property
        self._first: tuple[Case, RequirementFailed] | None = None  # that a search met

    def every(
        self, cases: SearchStrategy[C], ask: Callable[[KernelUnderTest, C], None], *, share: int | None = None
    ) -> None:
        """Ask `ask` of as many cases as the profile says, or of the one of a case file. Raises CaseFailed.

        With `share` this is a place where all options meet, and one of so many that share the profile's many cases.
        Without, it is one of many places with one option each, and a few cases do.
        """
        if self.replayed is not None:
            self.found = case_from_json(kept(self.replayed, "case"))
            self._refuse(Counter(self._reasons(self.found)))
        else:
            edges = self.profile.kernel_edges
            examples = edges if share is None else max(edges, self.profile.kernel_cases // share)
            self.found = self._search(cases, ask, examples)
        if self.found is not None:
            self.case = in_words(self.found)
            try:
                with _room_for(self.found):
                    ask(self, self.found)  # type: ignore[arg-type]
            except _NoRoomError as no_room:
                if self._first is not None:  # there was room when it failed
                    raise self._first[1] from no_room
                unsupported(str(no_room))
        if self._first is not None:  # what the search found has held just now: no pass, that is a race or stale memory
            self.found, error = self._first
            self.case = in_words(self.found)
            raise not_again(error)

    def _search(self, cases: SearchStrategy[C], ask: Callable[[KernelUnderTest, C], None], examples: int) -> C | None:
        from pabench.conformance.search import reject, search  # Hypothesis is heavy: only where it is used

        reasons: Counter[str] = Counter()
        asked = 0

        def look(case: C) -> None:
            nonlocal asked
            self.case = in_words(case)
            against = self._reasons(case)
            if against:
                reasons.update(against)
                if sum(reasons.values()) < _MOST_REFUSALS * examples:
                    reject()  # another one instead
                return
            asked += 1
            try:
                with _room_for(case):
                    ask(self, case)
            except _NoRoomError as error:
                asked -= 1
                reasons[str(error)] += 1
            except RequirementFailed as error:
                self._first = self._first or (case, error)
                raise
            except BaseException:  # it died, or the time is up: ends the search, and this is the case to tell of
                self.found = case
                raise

        found = search(cases, look, examples=examples, seed=int(self.rng.integers(2**63)),
                       shrink_s=self.profile.shrink_s)
        if not asked:
            self._refuse(reasons)
        self.note = f"{asked} cases" + (f", others unsupported: {_most(reasons)}" if reasons else "")
        return found

    def _reasons(self, case: Case) -> list[str]:
        form = getattr(case, "form", None)
        if form is not None and form.far_elements > 2**31 and self.device != "cpu":
            return ["2^32 elements before a cache take no memory on the CPU alone"]
        with blamed(f"unsupported({in_words(case)})"):
            return [clean(str(reason)) for reason in self._adapter.unsupported(case)]

    def _refuse(self, reasons: Counter[str]) -> None:
        if reasons:
            unsupported(_most(reasons))

    # Asking ----------------------------------------------------------------------------------------------------------

    def attend(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Result and LSE, where it is asked for and can be had, of the shapes and dtypes that they have to be of."""
        import torch

        self.asked = True
        batch = replace(batch, with_lse=batch.with_lse and self.can("lse"))
        with self._calling("attend"):
            out, lse = self._adapter.attend(batch)
        shape = (*batch.query.shape[:2], batch.cache.value.shape[3])
        _check_tensor("the result", out, shape, batch.query.dtype)
        if not batch.with_lse:
            return out, None
        _check_tensor("the LSE", lse, shape[:2], torch.float32)
        return out, lse

    def write(self, key: torch.Tensor, value: torch.Tensor, cache: Cache, slot_mapping: torch.Tensor) -> None:
        """As the protocol has it."""
        self.asked = True
        with self._calling("write"):
            self._adapter.write(key, value, cache, slot_mapping)

    def copy_blocks(self, source: Cache, target: Cache, pairs: torch.Tensor) -> None:
        """As the protocol has it."""
        self.asked = True
        with self._calling("copy_blocks"):
            self._adapter.copy_blocks(source, target, pairs)

    def merge(self, outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the protocol has it, of the right shapes and dtypes."""
        self.asked = True
        with self._calling("merge"):
            out, lse = self._adapter.merge(outs, lses)
        _check_tensor("the merged result", out, outs.shape[1:], outs.dtype)
        _check_tensor("the merged LSE", lse, lses.shape[1:], lses.dtype)
        return out, lse

    @contextlib.contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        """Around a call of the adapter, until the device has done it: what a kernel breaks shows no sooner.

        Raises EngineDied where the device takes no more work: no later case is to blame for that.
        """
        with poisoned_allocations(), blamed(what):
            try:
                yield
                _wait_for(self.device)
            except Exception as error:
                if fault := self.dead(self._adapter):
                    raise EngineDied(f"{what} raised {type(error).__name__}, and {fault}") from error
                raise

    @staticmethod
    def dead(adapter: Any) -> str:
        """See ImplementationUnderTest: an error of the device that sticks comes up at every later wait for it."""
        try:
            _wait_for(adapter.device)
        except RuntimeError as error:  # torch.AcceleratorError, where torch has it
            return f"the device {adapter.device} takes no more work: {clean(str(error))}"
        return ""

    # Case files ------------------------------------------------------------------------------------------------------

    def drawn(self) -> dict[str, Any]:
        """The case itself: all its tensors are drawn from it."""
        return {} if self.found is None else {"case": case_to_json(self.found)}


@contextlib.contextmanager
def poisoned_allocations() -> Iterator[None]:
    """New tensors hold NaN, or the largest whole number, until they are written: what is never written shows."""
    import torch

    before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` imports the compiler: seconds
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


class _NoRoomError(Exception):
    """A far cache cannot be had here: nothing that the kernel has to do with."""


@contextlib.contextmanager
def _room_for(case: Case) -> Iterator[None]:
    """Around a case: _NoRoomError where there is no memory to place its far cache in, and nothing for all else."""
    from pabench.conformance.kernel.layouts import num_blocks_in, place_cache

    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        form = getattr(case, "form", None)
        placing = any(frame.f_code is place_cache.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
        if form is None or form.layout != "far" or not placing or not _says_no_memory(error):
            raise
        rows = num_blocks_in(form, 0) * form.block_size * form.num_kv_heads
        size = sum(form.far_elements + rows * dim for dim in (form.head_dim, form.value_dim))
        size *= 4 if form.storage == "float32" else 2 if form.storage in DTYPES else 1
        size += 2 * 4 * (form.far_elements + rows) if form.scales == "slot" else 0
        raise _NoRoomError(f"a cache that lies so far takes {size / 2**30:.0f} GiB of address space, or of a device's "
                           f"memory, which cannot be had: {clean(str(error))[:_MAX_WHY_CHARS]}") from error


def _says_no_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()  # torch has a type of its own for it on some devices alone
    return isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY)


def _wait_for(device: str) -> None:
    """Until all that was launched on the device is done. Raises what went wrong there."""
    import torch

    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


def _check_tensor(what: str, x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    import torch

    if not isinstance(x, torch.Tensor) or tuple(x.shape) != tuple(shape) or x.dtype != dtype:
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
        fail(f"{what} as {dtype} {list(shape)}", f"{got}")


def _most(reasons: Counter[str]) -> str:
    """The most frequent reasons, in a line."""
    return "; ".join(reason for reason, _ in reasons.most_common(4))

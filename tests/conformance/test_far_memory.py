"""A far cache that there is no memory for says nothing of the kernel, and nothing else is let pass by that."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pabench.conformance.adapters import make_adapter
from pabench.conformance.failure import CaseFailed, fail
from pabench.conformance.kernel import layouts
from pabench.conformance.kernel.cases import AttendCase, CacheForm
from pabench.conformance.kernel.checks import equals_dense
from pabench.conformance.kernel.memory_checks import written_exactly
from pabench.conformance.kernel.strategies import attend_cases, write_cases
from pabench.conformance.kernel.under_test import KernelUnderTest
from pabench.conformance.profiles import PROFILES

FAR = attend_cases(form=st.just(CacheForm(layout="far")), longest=40, max_seqs=2)
SAYS = r"takes 32 GiB of address space, or of a device's memory, which cannot be had: "


def kernel() -> KernelUnderTest:
    return KernelUnderTest(make_adapter("paged-torch"), replace(PROFILES["smoke"], shrink_s=2),
                           np.random.default_rng(0), None)


def refusing(error: Exception) -> Callable[..., Any]:
    def refuse(*args: object, **options: object) -> None:
        raise error
    return refuse


@pytest.mark.parametrize("error", [
    OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError("no room"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
])
def test_no_room_is_unsupported(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(mmap, "mmap", refusing(error))
    under_test = kernel()
    with pytest.raises(pytest.skip.Exception, match=SAYS):
        under_test.every(FAR, equals_dense)
    with pytest.raises(pytest.skip.Exception, match=SAYS):
        under_test.every(write_cases(form=st.just(CacheForm(layout="far"))), written_exactly)


@pytest.mark.parametrize("error", [
    OSError(errno.EINVAL, "Invalid argument"), RuntimeError("CUDA error: an illegal memory access was encountered"),
])
def test_other_errors_are_the_suites_own(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(mmap, "mmap", refusing(error))
    with pytest.raises(type(error)):
        kernel().every(FAR, equals_dense)


def test_so_is_no_room_for_a_cache_that_is_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_filled", refusing(MemoryError("no room")))
    with pytest.raises(MemoryError):
        kernel().every(attend_cases(form=st.just(CacheForm())), equals_dense)


def test_so_is_no_room_for_anything_else() -> None:
    with pytest.raises(MemoryError):
        kernel().every(FAR, lambda *_: refusing(MemoryError("of the check"))())


def test_a_kernel_without_memory_fails() -> None:
    under_test = kernel()
    under_test._adapter.attend = refusing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(CaseFailed, match="attend raised OutOfMemoryError"):
        under_test.every(FAR, equals_dense)


def test_what_has_failed_stays_failed_where_there_is_no_room_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(under_test: KernelUnderTest, case: AttendCase) -> None:
        equals_dense(under_test, case)
        monkeypatch.setattr(mmap, "mmap", refusing(MemoryError("no room")))
        fail("this", "that")

    with pytest.raises(CaseFailed, match="got that"):
        kernel().every(FAR, check)

"""Tests that take `backend` run for every attention backend that computes in float64 too."""

from __future__ import annotations

from paged_kernels import BACKENDS


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", sorted(set(BACKENDS) - {"triton"}))

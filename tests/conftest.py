"""Shared by all tests of the tool: Hypothesis profiles and the probe on disk."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here and in the engines that tests start. The models are so small that a second thread
# costs more than it gives, several times as much where two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before triton is imported: without a GPU its kernels run in its interpreter, on CPU tensors.
if not any(Path(driver).exists() for driver in ("/proc/driver/nvidia/version", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

from pabench.load.line import SO_TIMESTAMPNS, asks_for_stamps
from pabench.probe import PRESETS, build_checkpoint

# `ci` is derandomised: the same examples on every machine. `full` is for a long look at home.
settings.register_profile("smoke", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("PABENCH_HYPOTHESIS", "ci"))


# Half a minute or more each, or a long chain: one that begins last keeps one worker, and no other.
_FIRST = (
    "test_browser.py", "test_what_killed_it_is_found", "test_a_wrong_window_is_found", "test_sound_engines_conform",
    "test_a_sound_engine_passes_in_bfloat16", "vllm_remote_kv_partial_reserve_deadlock",
    "vllm_prefix_prefill_fp8_scale__triton", "test_a_thousand_cases_of_each_kernel[attention]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What cannot be shared out well comes first."""
    items.sort(key=lambda item: not any(part in item.nodeid for part in _FIRST))


@pytest.fixture(scope="session", autouse=True)
def stamping() -> Iterator[None]:
    """The kernel begins to stamp arrivals a moment after the first socket asks for it, and what comes before bears no
    stamp. A run has its warm-ups for that; tests, which have none, have a socket that asks from the beginning.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if asks_for_stamps(None):
            asking.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        yield


@pytest.fixture(scope="session")
def tiny_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the `tiny` probe in float32."""
    folder = tmp_path_factory.mktemp("probe") / "tiny"
    build_checkpoint(PRESETS["tiny"], folder)
    return folder


@pytest.fixture(scope="session")
def vision_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the `vision` probe in float32."""
    folder = tmp_path_factory.mktemp("probe") / "vision"
    build_checkpoint(PRESETS["vision"], folder)
    return folder


@pytest.fixture(scope="session")
def mixed_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the `mixed` probe in float32."""
    folder = tmp_path_factory.mktemp("probe") / "mixed"
    build_checkpoint(PRESETS["mixed"], folder)
    return folder


@pytest.fixture(scope="session")
def window_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the `window` probe in float32."""
    folder = tmp_path_factory.mktemp("probe") / "window"
    build_checkpoint(PRESETS["window"], folder)
    return folder

"""What the backend runs on, and what that can do."""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from paged_kernels.triton_backend import interpreter
from paged_kernels.triton_backend.attend import attend_kernel


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET was 1 when they were imported."""
    return isinstance(attend_kernel, InterpretedFunction)


if interpreted():
    interpreter.hasten()


def check_device(device: torch.device) -> None:
    """Raise ValueError where the kernels cannot run on this device."""
    if device.type != "cuda" and not interpreted():
        raise ValueError(f"backend 'triton' runs on a GPU that torch calls cuda, the tensors are on {device}: choose "
                         "backend 'torch', or set TRITON_INTERPRET=1 before the program starts (on a CPU; slow, for "
                         "tests)")
    if interpreted() and not _interpreter_counts(triton.__version__, np.__version__):
        raise ValueError(f"the interpreter of Triton {triton.__version__} cannot count to a number that a kernel has "
                         f"read under NumPy {np.__version__}: take Triton 3.7 or newer, or NumPy older than 2.4")


def _interpreter_counts(triton_version: str, numpy_version: str) -> bool:
    """Whether `range` takes a number that was loaded: Triton before 3.7 makes an int of an array of one element, which
    NumPy refuses since 2.4.
    """
    of_triton, of_numpy = (tuple(map(int, version.split(".")[:2])) for version in (triton_version, numpy_version))
    return of_triton >= (3, 7) or of_numpy < (2, 4)


def describe_device(device: torch.device) -> str:
    """The device by name."""
    return "Triton's interpreter" if interpreted() else str(torch.cuda.get_device_name(device))


@functools.cache
def reads_fp8(device: torch.device) -> bool:
    """Whether the target has the type float8_e4m3fn: NVIDIA from compute capability 8.9 on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def target_of(device: torch.device) -> str:
    """Which of `tiles.TARGETS` the device is."""
    if device.type != "cuda":
        return "nvidia"
    if torch.version.hip is not None:
        return "amd"
    return "blackwell" if torch.cuda.get_device_capability(device) >= (10, 0) else "nvidia"

"""What the backend runs on, and what that can do."""

from __future__ import annotations

import functools

import torch
from triton.runtime.interpreter import InterpretedFunction

from paged_kernels.triton_backend.attend import attend_kernel


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET was 1 when they were imported."""
    return isinstance(attend_kernel, InterpretedFunction)


def check_device(device: torch.device) -> None:
    """Raise ValueError where the kernels cannot run on this device."""
    if device.type == "cpu" and not interpreted():
        raise ValueError("backend 'triton' runs on a GPU, the tensors are on the CPU: choose backend 'torch', or set "
                         "TRITON_INTERPRET=1 before the program starts (slow, for tests)")


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

"""The clock: CUDA graphs and events on a GPU, processor time nowhere; and what a large streaming read reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import triton
import triton.language as tl

from paged_kernels.triton_backend.device import interpreted

_WARM_UPS, _REPEATS = 3, 20
_READ_BYTES = 2 << 30
_WARM_UP_S = 0.2           # until the device's clock has risen
_GRAPH_CYCLES = 2_000_000  # that the device sleeps, about a millisecond, while a graph is launched behind it
_CALL_CYCLES = 200_000     # and while each call is
_MOST_COPIES = 256
_TILE, _ROUNDS = tl.constexpr(4096), tl.constexpr(16)

Calls = Callable[[int], object]  # the call on copy i of the data


def device() -> torch.device:
    """The GPU, or the CPU for Triton's interpreter. Raises RuntimeError where there is neither."""
    if interpreted():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    raise RuntimeError("torch sees no GPU: run this on one, or with TRITON_INTERPRET=1 to see that it works")


def milliseconds(call: Calls, copies: int) -> tuple[list[float], str]:
    """(time of one call, a repeat each, and how it was taken). Copies of the data take turns: none is in a cache."""
    if interpreted():
        took = []
        for i in range(2):
            start = time.perf_counter()
            call(i % copies)
            took.append((time.perf_counter() - start) * 1e3)
        return took, "interpreter"
    for i in range(_WARM_UPS * copies):
        call(i % copies)
    torch.cuda.synchronize()
    stream = torch.cuda.current_stream()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(copies):
                call(i)
    except RuntimeError:  # what cannot be captured is launched call by call, and the row says so
        torch.cuda.set_stream(stream)  # a capture that fails at its end leaves its own
        torch.cuda.synchronize()
        return _events(lambda: [call(i) for i in range(copies)], copies, _CALL_CYCLES * copies), "eager"
    return _events(graph.replay, copies, _GRAPH_CYCLES), "graph"


def _events(work: Callable[[], object], copies: int, sleep_cycles: int) -> list[float]:
    """Milliseconds of a call, `copies` of which are one `work`. It is queued while the device sleeps.

    Otherwise an event would be in time for the launch that follows it, and the host's share counted.
    """
    work()  # a graph's first replay uploads it
    took = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(sleep_cycles)
        start.record()
        work()
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end) / copies)
    return took


@triton.jit
def _sum_kernel(source, target):
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((_TILE,), tl.float32)
    for i in range(_ROUNDS):
        total += tl.load(source + (program * _ROUNDS + i) * _TILE + tl.arange(0, _TILE))
    tl.store(target + program, tl.sum(total, 0))


def read_bandwidth(where: torch.device) -> float | None:
    """Bytes a second of a streaming read of 2 GiB, far more than any cache holds. None in the interpreter."""
    per_program = _TILE.value * _ROUNDS.value
    programs = 2 if interpreted() else _READ_BYTES // 4 // per_program
    source = torch.ones(programs * per_program, dtype=torch.float32, device=where)
    target = torch.empty(programs, dtype=torch.float32, device=where)

    def read(_: int) -> None:
        _sum_kernel[(programs,)](source, target)

    until = time.monotonic() + (0 if interpreted() else _WARM_UP_S)
    while time.monotonic() < until:
        read(0)
        torch.cuda.synchronize(where)
    took, _ = milliseconds(read, 1)
    if not bool((target == per_program).all()):
        raise RuntimeError("the streaming read gave a wrong sum")
    return None if interpreted() else source.nbytes / (median(took) * 1e-3)


def copies_beyond_cache(kv_bytes: int, where: torch.device) -> int:
    """How many copies of the data have to take turns, so that the cache holds none of them."""
    if where.type == "cpu":
        return 1
    return max(1, min(_MOST_COPIES, -(-4 * cache_bytes(where) // kv_bytes)))


def cache_bytes(where: torch.device) -> int:
    """The second-level cache of a GPU; 64 MiB where torch does not tell."""
    return getattr(torch.cuda.get_device_properties(where), "L2_cache_size", 0) or (64 << 20)

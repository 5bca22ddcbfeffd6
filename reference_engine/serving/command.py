"""What `python -m reference_engine` does once its arguments are known to be good: load a model, and serve it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
from pathlib import Path

import torch
import uvloop
from aiohttp import web

from pabench.errors import UsageError
from reference_engine.arguments import describe
from reference_engine.block_trace import BlockTrace
from reference_engine.config import EngineConfig
from reference_engine.engine import Engine
from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.server import Server


def run(args: argparse.Namespace, config: EngineConfig, sock: socket.socket) -> None:
    """Load the model and serve it at `sock`. Raises UsageError for what cannot be, before it loads where it can."""
    engine = build_engine(args, config)
    if args.trace is not None:
        engine.trace = BlockTrace(args.trace, engine.scheduler)
    gc.freeze()  # the model and its tables live for ever: keep them out of collections
    uvloop.run(serve(engine, sock, args.served_model_name or args.model.resolve().name, args.model.resolve()))


def build_engine(args: argparse.Namespace, config: EngineConfig) -> Engine:
    """Load the model and allocate the cache. Raises UsageError for a device that cannot be used."""
    use_threads(args.threads)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a device that torch here cannot use
        raise UsageError(f"--device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return Engine.from_folder(args.model, config, dtype=getattr(torch, args.dtype), device=args.device)


def use_threads(count: int | None) -> None:
    """Let torch compute with `count` threads; None: as OMP_NUM_THREADS says, else with one. Raises UsageError.

    Torch by itself takes all cores, where threads wait for each other longer than such small products take.
    """
    if count is not None and count < 1:
        raise UsageError(f"--threads is {count}, expected at least 1")
    if count is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count or 1)


async def serve(engine: Engine, sock: socket.socket, served_model: str, model_root: Path) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runtime = AsyncEngine(engine)
    runner = Server(runtime, served_model, model_root).runner()
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=1024).start()
        host, port = sock.getsockname()[:2]
        whole = "small batches in layers compiled whole, " if engine.runner.whole else ""
        print(f"{served_model}: {describe(engine.config)}, {whole}{engine.pool.num_bytes / 2**20:.0f} MiB, "
              f"{torch.get_num_threads()} CPU threads; listening on http://{host}:{port}", flush=True)
        await stop.wait()
    except OSError as error:
        raise UsageError(f"cannot listen: {error}") from error
    finally:
        runtime.stop()
        if engine.trace is not None:
            engine.trace.close()
        await runner.cleanup()

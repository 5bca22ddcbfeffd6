"""`python -m reference_engine --model DIR …`: serve a model until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import uvloop
from aiohttp import web

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from reference_engine.block_trace import BlockTrace, check_new_file
from reference_engine.config import CHOICES, DTYPES, EngineConfig
from reference_engine.engine import Engine
from reference_engine.model.families import read_model_config
from reference_engine.serving.async_engine import AsyncEngine
from reference_engine.serving.server import Server


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m reference_engine", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="An OpenAI-compatible engine with a paged or a contiguous KV cache.",
    )
    p.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a Llama-family model")
    p.add_argument("--served-model-name", help="name that clients ask for; default: the folder's name")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=int, default=8000, help="port to listen on")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of weights and KV cache")
    p.add_argument("--device", default="cpu", help="torch device")
    p.add_argument("--kv", choices=CHOICES["kv"], default="paged", help="how sequences get KV memory")
    p.add_argument("--block-size", type=int, default=16, help="slots (tokens) in a block")
    p.add_argument("--num-blocks", type=int, default=2048, help="blocks in the KV cache, allocated once")
    p.add_argument("--max-num-seqs", type=int, default=64, help="sequences that run at once")
    p.add_argument("--max-model-len", type=int, help="longest prompt plus output, tokens; default: the model's own")
    p.add_argument("--max-num-batched-tokens", type=int, default=2048, help="tokens in one step")
    p.add_argument("--trace", type=Path, help="new file that records which sequence owns which block at each step")
    p.add_argument("--check-integrity", action="store_true", help="check all books after every step (slow)")
    return p


def build_engine(args: argparse.Namespace) -> Engine:
    """Load the model and allocate the cache. Raises UsageError for what cannot be."""
    longest = read_model_config(args.model).max_position_embeddings
    config = EngineConfig(
        max_model_len=args.max_model_len or longest, kv=args.kv, block_size=args.block_size,
        num_blocks=args.num_blocks, max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens, check_integrity=args.check_integrity,
    )
    if config.max_model_len > longest:
        raise UsageError(f"--max-model-len is {config.max_model_len}, the model goes to {longest} tokens")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a device that torch here cannot use
        raise UsageError(f"--device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return Engine.from_folder(args.model, config, dtype=DTYPES[args.dtype], device=args.device)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is known before the model is loaded."""
    if not 0 <= port < 65536:
        raise UsageError(f"cannot listen on port {port}, expected 0 (any free one) to 65535")
    sock = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error}") from error
    return sock


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
        print(f"{served_model}: {engine.config.kv} KV cache, {engine.config.num_blocks} blocks of "
              f"{engine.config.block_size} tokens, {engine.pool.num_bytes / 2**20:.0f} MiB; "
              f"listening on http://{host}:{port}", flush=True)
        await stop.wait()
    except OSError as error:
        raise UsageError(f"cannot listen: {error}") from error
    finally:
        runtime.stop()
        if engine.trace is not None:
            engine.trace.close()
        await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        with listen(args.host, args.port) as sock:
            if args.trace is not None:
                check_new_file(args.trace)
            engine = build_engine(args)
            if args.trace is not None:
                engine.trace = BlockTrace(args.trace, engine.scheduler)
            gc.freeze()  # the model and its tables live for ever: keep them out of collections
            uvloop.run(serve(engine, sock, args.served_model_name or args.model.resolve().name, args.model.resolve()))
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while loading
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

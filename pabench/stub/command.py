"""`pabench stub`: the stub's options on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from pabench.errors import UsageError
from pabench.stub.fast import FAST_OPTIONS, serve_fast
from pabench.stub.options import StubOptions
from pabench.stub.server import serve

_EXAMPLES = """examples:
  pabench stub --ttft-ms 50 --itl-ms 10 --port 8001
  pabench stub --port 8001 --tokens-per-chunk 4 --role-chunk
  pabench stub --port 8001 --error-rate 0.1
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (of this process when None) and serve until interrupted. Raises UsageError on bad values."""
    given = vars(_parser().parse_args(arguments))
    if not given.pop("fast"):
        if given["no_stamps"]:
            raise UsageError("--no-stamps is of the fast stub: give --fast as well, or leave it out")
        serve(StubOptions(**given))
        return
    defaults = asdict(StubOptions())
    beyond = [name for name, value in given.items() if name not in FAST_OPTIONS and value != defaults[name]]
    if beyond:
        raise UsageError(f"--fast knows {', '.join(FAST_OPTIONS)} alone, got {', '.join(beyond)} as well")
    serve_fast(StubOptions(**given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pabench stub",
        description="A stub engine of known timing. Each chunk carries the time of its writing, pabench_sent_ns.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = StubOptions()
    known: list[tuple[str, type[str] | type[int] | type[float], str]] = [
        ("host", str, "address to listen at"),
        ("port", int, "port to listen at, 0 for any free one"),
        ("model", str, "name of the model"),
        ("ttft_ms", float, "from a request's arrival to its first token"),
        ("itl_ms", float, "between tokens"),
        ("end_ms", float, "from a stream's last token to its end"),
        ("tokens_per_chunk", int, "tokens in a chunk"),
        ("max_model_len", int, "longest sequence, tokens"),
        ("seed", int, "of the samples drawn at a fork"),
        ("status", int, "refuse every generation with this HTTP status"),
        ("error_rate", float, "share of generations refused with 500"),
        ("error_after", int, "tokens, then an error inside the stream"),
        ("stall_after", int, "tokens, then silence"),
        ("cut_after", int, "tokens, then the connection is cut"),
        ("die_after", int, "generations, then the engine is gone"),
        ("wrong_every", int, "every so many tokens one is wrong"),
    ]
    for name, kind, text in known:
        default = getattr(defaults, name)
        told = "" if default is None else f" (default {default:g})" if kind is not str else f" (default {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text + told)
    parser.add_argument("--role-chunk", action="store_true", help="send an empty first chunk at once")
    parser.add_argument("--no-done", action="store_true", help="leave out [DONE]")
    parser.add_argument("--no-stamps", action="store_true",
                        help="with --fast: leave out when a chunk was written, as engines do")
    parser.add_argument("--fast", action="store_true", help="timing alone, of one fixed word: 100 000 chunks a second")
    return parser

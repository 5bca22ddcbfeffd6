"""`python -m reference_engine --model DIR …`: serve a model until Ctrl-C or SIGTERM."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from pabench.errors import EXIT_INTERRUPTED, EXIT_OK, PabenchError, UsageError
from reference_engine.arguments import engine_config, parser
from reference_engine.block_trace import check_new_file


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
    except (OSError, UnicodeError) as error:  # the latter for a host that can be no name
        if sock is not None:
            sock.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error}") from error
    return sock


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        with listen(args.host, args.port) as sock:
            if args.trace is not None:
                check_new_file(args.trace)
            config = engine_config(args)
            from reference_engine.serving.command import run  # torch: seconds, for which nobody waits who is mistaken

            run(args, config, sock)
    except PabenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while loading
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())

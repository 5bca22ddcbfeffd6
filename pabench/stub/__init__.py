"""A stub engine of known timing: what a client measures against it can be checked.

It speaks OpenAI completions and chat, whole and streamed, and answers the KV probe's prompts exactly (without any
cache: it looks the successor up in the prompt), so that verified runs work without a model. Each chunk carries the
time at which it was written, `pabench_sent_ns`, on this host's monotonic clock. Its faults are switches, one each.
"""

from pabench.stub.command import main
from pabench.stub.options import StubOptions
from pabench.stub.server import StubServer, serve

__all__ = ["StubOptions", "StubServer", "main", "serve"]

"""The table of a process's open files, which grows at 256, 512, 1024 … of them, and stops the process for it.

Linux waits there until no other thread can look at the old table (synchronize_rcu): 10 to 15 ms, in which a client
neither sends nor reads.
"""

from __future__ import annotations

import os
import sys

_OTHERS = 64  # files that are no connections: journals, libraries, the event loop's own


def make_room(num_connections: int) -> None:
    """Let the table grow now, for so many connections more, or as many as the process may have."""
    if sys.platform != "linux":
        return
    import fcntl
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + _OTHERS
    number = wanted if most == resource.RLIM_INFINITY else min(wanted, most - 1)
    any_file = os.open(os.devnull, os.O_RDONLY)
    try:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, number))
    except OSError:
        pass  # all that it may have are open: connections will fail, and say so
    finally:
        os.close(any_file)

"""The exception tree, and the exit codes.

    PabenchError              exit 2: could not run
    ├── UsageError            bad input: what was got, what was expected, what to do
    ├── EngineError
    │   ├── EngineUnreachable nothing answers at the URL
    │   ├── EngineDied        it answered before, now it does not (CRASH)
    │   ├── EngineTimeout     no answer within the stated time (TIMEOUT)
    │   └── EngineProtocol    an answer that is not what the dialect promises
    └── RequirementFailed     a conformance requirement does not hold (FAIL)

Exit codes everywhere: 0 done and conforming, 1 done and not conforming (or a regression),
2 could not run, 3 inconclusive (the gate and the search for a capacity: more repeats are needed), 130 interrupted
(what was measured is kept).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_NOT_CONFORMING = 1
EXIT_COULD_NOT_RUN = 2
EXIT_INCONCLUSIVE = 3
EXIT_INTERRUPTED = 130


class PabenchError(Exception):
    """Base of all errors that pabench raises on purpose. Its text is shown to the user as one line."""

    exit_code = EXIT_COULD_NOT_RUN


class UsageError(PabenchError):
    """Bad input. The text says what was got, what was expected and what to do."""


class EngineError(PabenchError):
    """The engine under test did not do what was asked of it."""


class EngineUnreachable(EngineError):
    """Nothing answers at the URL."""


class EngineDied(EngineError):
    """The engine answered before and does not any more."""


class EngineTimeout(EngineError):
    """No complete answer within the stated time."""


class EngineProtocol(EngineError):
    """An answer that is not what the dialect promises."""


class RequirementFailed(PabenchError):
    """A conformance requirement does not hold. `str(error)` is the failure text shown to an implementer."""

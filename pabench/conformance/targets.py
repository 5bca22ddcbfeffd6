"""What a run asks, as the machinery sees it: an engine at a URL, or an implementation in the process of the suite.

    Target   one for the whole run: opened once, described in the header, looked at after each failure
    Subject  one a case: what a test holds (`engine`, `allocator`, `kernel`)

`engine_target` and `implementation` have the two targets that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

import numpy as np
import pytest

from pabench.conformance.profiles import Profile
from pabench.conformance.registry import Requirement


class Subject(Protocol):
    """What a test holds for one case."""

    case: str  # in a line, what the case asks; tests set it
    note: str  # shown beside a PASS: what was, and was not, exercised

    @property
    def asked(self) -> bool:
        """Whether anything at all was asked: no PASS without a question."""
        ...

    @property
    def unproven(self) -> str:
        """Why a case that came to its end proves nothing, so that it is UNSUPPORTED; "" when it is a PASS."""
        ...

    def cancel(self) -> None:
        """Give up what is still under way."""
        ...

    def drawn(self) -> dict[str, Any]:
        """As JSON, what the case was made by: with it, its name and the seed, it can be asked again."""
        ...

    def evidence(self) -> dict[str, Any]:
        """As JSON, what was asked and answered, for whoever reads the case file."""
        ...


class Target(Protocol):
    """What is asked in one run."""

    level: str     # http, alloc or kernel: the first part of the ids of its requirements
    locator: str   # how the command line names it: "--url http://…" or "--impl name"
    url: str       # "" where there is none

    @property
    def gone(self) -> str | None:
        """Why nothing more can be asked of it; None while it lives."""
        ...

    def open(self, profile: Profile, seed: int, news: Callable[[str], None]) -> None:
        """Make ready for the first case; `news` is told what takes long. Raises PabenchError when that cannot be."""
        ...

    def smoke(self) -> str:
        """Ask one small thing before all else: "ok", or what was wrong with the answer."""
        ...

    @property
    def impl(self) -> str:
        """What it is and where, for failure texts."""
        ...

    def told(self) -> dict[str, Any]:
        """As JSON, what it says about itself, for the header and the case files. Hostile: escape it."""
        ...

    def circumstances(self) -> dict[str, str | None]:
        """What the `when` of an expectation speaks of, the profile aside."""
        ...

    def lacks(self, requirement: Requirement) -> str:
        """Why it cannot be asked this requirement; "" when it can."""
        ...

    def subject(self, rng: np.random.Generator, drawn: Mapping[str, Any] | None) -> Subject:
        """For one case. `drawn` is what a case file says, where one is asked again."""
        ...

    def limited(self) -> AbstractContextManager[None]:
        """Around a case: raises EngineTimeout in it when its time is up, where nothing else bounds it."""
        ...

    def still_lives(self) -> bool:
        """Whether more can be asked of it after a failure; sets `gone` when not."""
        ...

    def recover(self, subject: Subject) -> str:
        """After it died in the case of `subject`: in a line, how it ended and what of; "" where nothing is known."""
        ...

    def make_ready(self) -> None:
        """Before a case: what has died lives again, so that `gone` is None, where that can be."""
        ...

    def starts(self) -> tuple[int, float]:
        """How often the run has started it, and how many seconds that took; 0 where it was there already."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def unsupported(reason: str) -> NoReturn:
    """End the test as UNSUPPORTED: what is under test cannot be asked this."""
    pytest.skip(reason)

"""An implementation in process as what a run asks: told apart by its protocol, bounded in time."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pabench.conformance.adapters import make_adapter
from pabench.conformance.failure import CaseFailed, Failure
from pabench.conformance.levels import IN_PROCESS, capabilities, level_of, package
from pabench.conformance.profiles import Profile
from pabench.conformance.registry import Requirement
from pabench.conformance.targets import Subject, unsupported
from pabench.conformance.time_limits import case_limited
from pabench.engines.cleaning import clean
from pabench.errors import EngineError, RequirementFailed, UsageError


class ImplementationUnderTest:
    """What the subjects of all levels in process have in common. See targets.Subject."""

    def __init__(
        self, adapter: Any, profile: Profile, rng: np.random.Generator, drawn: Mapping[str, Any] | None
    ) -> None:
        self.profile = profile
        self.rng = rng
        self.case = ""
        self.note = ""
        self.asked = False
        self.unproven = ""
        self.replayed = drawn  # what a case file says, where one is asked again
        self._adapter: Any = adapter

    def can(self, capability: str) -> bool:
        """Whether the implementation has `capability`, of its level's vocabulary."""
        return capability in self._adapter.capabilities

    def need(self, capability: str, why: str) -> None:
        """Skip the test, as UNSUPPORTED, where the implementation lacks `capability`."""
        if not self.can(capability):
            unsupported(f"{why}: the implementation lacks {capability}")

    def claim(self, case: Any) -> None:
        """Skip the test, as UNSUPPORTED, where the adapter gives reasons against `case`."""
        with blamed(f"unsupported({case})"):
            reasons = list(self._adapter.unsupported(case))
        if reasons:
            unsupported(clean("; ".join(map(str, reasons))))

    def cancel(self) -> None:
        """Nothing runs on behind a call."""

    @staticmethod
    def dead(_adapter: Any) -> str:
        """Why nothing more can be asked of an adapter, after a failure; "" where it can.

        One in a process of its own starts it again when it is next asked.
        """
        return ""

    def drawn(self) -> dict[str, Any]:
        """See Subject. By default seed and name make the same case again."""
        return {}

    def evidence(self) -> dict[str, Any]:
        """See Subject."""
        return {}


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Around a call of an adapter: what it raises is the implementation's failure, not the suite's."""
    try:
        yield
    except (EngineError, RequirementFailed):
        raise
    except Exception as error:
        raised = f"{what} raised {type(error).__name__}: {error}"
        raise CaseFailed(Failure(f"{what} is done, or refused by a value", raised,
                                 hint=f"raised at {_place(error)}; what cannot be asked, `unsupported` has to say "
                                      "beforehand")) from error


def kept(replayed: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The trace or case that a case file keeps. Raises UsageError where its run broke off before there was one."""
    if not isinstance(replayed.get(what), Mapping):
        raise UsageError(f"the case file keeps no {what} to ask again: its run broke off before one was drawn; ask the "
                         "whole requirement with pabench conform --id, and its profile and seed")
    return dict(replayed[what])


def _place(error: BaseException) -> str:
    """File and line where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class ImplementationTarget:
    """See targets.Target. `named` is what the command line says."""

    def __init__(self, named: str) -> None:
        self.named = named
        self.locator, self.url = f"--impl {shlex.quote(named)}", ""
        self.gone: str | None = None
        self.adapter: Any = make_adapter(named)
        found = level_of(self.adapter)
        if found is None:
            needed = "; ".join(f"{level}: {', '.join(_methods(package(level).Adapter))}" for level in IN_PROCESS)
            raise UsageError(f"{named} made a {type(self.adapter).__name__}, which is an adapter of no level; {needed}")
        self.level = found
        if unknown := sorted(set(self.adapter.capabilities) - capabilities(found)):
            raise UsageError(f"{named} has unknown capabilities {', '.join(unknown)}; "
                             f"known: {', '.join(sorted(capabilities(found)))}")
        self._profile: Profile | None = None

    @property
    def profile(self) -> Profile:
        """Of the run."""
        if self._profile is None:
            raise RuntimeError("the implementation is opened when tests begin to run")
        return self._profile

    def open(self, profile: Profile, seed: int, news: Callable[[str], None]) -> None:
        """See Target."""
        self._profile = profile

    def smoke(self) -> str:
        """The first requirements are the smallest question already."""
        return "ok"

    @property
    def impl(self) -> str:
        """See Target."""
        return clean(str(self.adapter.describe()))

    def told(self) -> dict[str, Any]:
        """See Target."""
        return {"label": self.impl, "impl": self.named, "level": self.level,
                "capabilities": sorted(self.adapter.capabilities)}

    def circumstances(self) -> dict[str, str | None]:
        """See Target."""
        return {"impl": self.named}

    def lacks(self, requirement: Requirement) -> str:
        """See Target."""
        missing = [need for need in requirement.needs if need not in self.adapter.capabilities]
        return f"the implementation lacks {', '.join(missing)}" if missing else ""

    def subject(self, rng: np.random.Generator, drawn: Mapping[str, Any] | None) -> Subject:
        """See Target."""
        under_test: Subject = package(self.level).UnderTest(self.adapter, self.profile, rng, drawn)
        return under_test

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """See Target. An endless loop in process can be left by an alarm alone."""
        return case_limited(self.profile.case_timeout_s)

    def still_lives(self) -> bool:
        """See Target."""
        self.gone = package(self.level).UnderTest.dead(self.adapter) or None
        return self.gone is None

    def recover(self, subject: Subject) -> str:
        """See Target. An adapter tells itself what ended its process."""
        return ""

    def make_ready(self) -> None:
        """See Target. What has ended in this process stays so; one of its own may take longer to start than a case."""
        if self.gone is not None or not hasattr(self.adapter, "make_ready"):
            return
        try:
            self.adapter.make_ready()
        except EngineError as error:
            self.gone = str(error)

    def starts(self) -> tuple[int, float]:
        """See Target."""
        return 0, 0.0

    def close(self) -> None:
        """See Target."""
        if hasattr(self.adapter, "close"):
            self.adapter.close()


def _methods(protocol: type) -> list[str]:
    return sorted(name for name in dir(protocol) if not name.startswith("_") and callable(getattr(protocol, name)))



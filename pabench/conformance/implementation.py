"""An implementation in process as what a run asks: found by its name, told apart by its protocol, bounded in time.

    pabench conform --impl vllm-blocks                 an adapter that ships: suites/adapters
    pabench conform --impl acme.testing:allocator      a factory in a module
    pabench conform --impl acme/adapter.py:allocator   a factory in a file

A factory takes nothing and returns an adapter: an object with the methods of its level's protocol (levels.py), and

    capabilities                 what it has beyond the least, from the vocabulary of its level
    describe() -> str            what really runs: names, versions
    unsupported(case) -> list    reasons why a case cannot be asked of it; none: it can
    close()                      if it has one: at the end of the run
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

import numpy as np

from pabench.conformance.failure import CaseFailed, Failure
from pabench.conformance.levels import IN_PROCESS, capabilities, level_of, package
from pabench.conformance.profiles import Profile
from pabench.conformance.registry import Requirement
from pabench.conformance.targets import Subject, unsupported
from pabench.engines.cleaning import clean
from pabench.errors import EngineError, EngineTimeout, RequirementFailed, UsageError
from pabench.resources import data_dir

# Name -> factory. Files lie in suites/adapters: pabench itself imports no engine.
SHIPPED = {
    "reference-paged": "reference.py:paged",
    "reference-contiguous": "reference.py:contiguous",
    "vllm-blocks": "elsewhere.py:vllm",
    "transformers-blocks": "elsewhere.py:transformers",
    "paged-torch": "paged.py:in_torch",
    "paged-triton": "paged.py:in_triton",
    "paged-numba": "paged.py:in_numba",
    "flex-attention": "flex.py:eager",
    "flashinfer": "flashinfer.py:paged",
    "flash-attention": "flash_attention.py:paged",
}
_ALARM_AGAIN_S = 1.0


class Adapter(Protocol):
    """What adapters of all levels have."""

    capabilities: frozenset[str]

    def describe(self) -> str:
        """What really runs."""
        ...

    def unsupported(self, case: Any) -> list[str]:
        """Why `case` cannot be asked of it."""
        ...


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


@contextlib.contextmanager
def ended_within(limit_s: float, what: str, meanwhile: Callable[[], str]) -> Iterator[None]:
    """Around a call of an adapter that may loop for ever: its failure, long before the case's time is up.

    Rests on the alarm of the case, and does nothing where there is none or it strikes before. `meanwhile` says what
    waits for the call.
    """
    start, left_s = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "setitimer") else 0.0
    if left_s <= limit_s:
        yield
        return
    before = signal.signal(signal.SIGALRM, _call_out_of_time)
    _alarm_in(limit_s)
    try:
        yield
    except _CallOutOfTime:
        raise CaseFailed(Failure(f"{what} ends within {limit_s:g} s", f"it did not, while {meanwhile()}",
                                 hint="an endless loop: what it tries again and again never makes progress")) from None
    finally:
        signal.signal(signal.SIGALRM, before)
        _alarm_in(max(left_s - (time.monotonic() - start), 0.001))


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
        self.locator, self.url = f"--impl {named}", ""
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

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """By an alarm, where there is one to be had: an endless loop in process cannot be left otherwise."""
        main = threading.current_thread() is threading.main_thread()
        if not main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
            yield
            return
        before = signal.signal(signal.SIGALRM, _out_of_time)
        _alarm_in(self.profile.case_timeout_s)
        try:
            yield
        except _OutOfTime:
            # Not `from` it: struck between two lines, its traceback has no line number, which pytest cannot show.
            raise EngineTimeout(f"no end within the {self.profile.case_timeout_s:g} s of a case") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def still_lives(self) -> bool:
        """See Target."""
        self.gone = package(self.level).UnderTest.dead(self.adapter) or None
        return self.gone is None

    def recover(self, subject: Subject) -> str:
        """See Target. An adapter tells itself what ended its process."""
        return ""

    def close(self) -> None:
        """See Target."""
        if hasattr(self.adapter, "close"):
            self.adapter.close()


def _alarm_in(seconds: float) -> None:
    """And again from then on: what is raised in a finaliser, or in a callback of the garbage collector, is lost."""
    signal.setitimer(signal.ITIMER_REAL, seconds, _ALARM_AGAIN_S)


class _OutOfTime(BaseException):
    """Not an Exception: neither an adapter nor Hypothesis may take it for one of theirs."""


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise _OutOfTime


class _CallOutOfTime(BaseException):
    """As _OutOfTime, of one call."""


def _call_out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise _CallOutOfTime


def _methods(protocol: type) -> list[str]:
    return sorted(name for name in dir(protocol) if not name.startswith("_") and callable(getattr(protocol, name)))


def check_name(named: str) -> None:
    """Raise UsageError unless `named` is a name that ships or looks like a factory. Imports nothing."""
    where, colon, factory = SHIPPED.get(named, named).rpartition(":")
    if not colon or not where or not factory.isidentifier():
        raise UsageError(f"--impl is {named!r}, expected one of {', '.join(SHIPPED)}, or package.module:factory, or "
                         "path/to/file.py:factory")
    if named not in SHIPPED and where.endswith(".py") and not Path(where).is_file():
        raise UsageError(f"--impl is {named!r}, but there is no file {where}")


def make_adapter(named: str) -> Any:
    """The adapter that `named` makes. Raises UsageError when there is none to be had."""
    check_name(named)
    where, _, factory_name = SHIPPED.get(named, named).rpartition(":")
    try:
        module = _module(data_dir("suites") / "adapters" / where if named in SHIPPED else where)
        factory: Callable[[], Any] = getattr(module, factory_name)
        return factory()
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--impl {named} makes no adapter: {type(error).__name__}: {clean(str(error))}") from error


def _module(where: str | Path) -> ModuleType:
    path = Path(where)
    if path.suffix != ".py":
        sys.path.insert(0, "")  # pytest, unlike `python -m`, does not look here
        try:
            return importlib.import_module(str(where))
        finally:
            sys.path.remove("")
    # A name of its own: vllm.py must not stand in the way of vllm.
    spec = importlib.util.spec_from_file_location(f"pabench_adapter_{path.stem}", path)
    assert spec is not None, "a file that ends in .py has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

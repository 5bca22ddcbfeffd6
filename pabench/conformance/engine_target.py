"""An engine at a URL as what a run asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Geometry
from pabench.conformance.profiles import Profile
from pabench.conformance.prompts import rings_of_prompt_lengths
from pabench.conformance.registry import Requirement
from pabench.conformance.session import EngineSession, open_session
from pabench.conformance.verify import Ask
from pabench.engines.cleaning import clean
from pabench.engines.client import base_url
from pabench.errors import EngineError, RequirementFailed, UsageError

API_KEY_VARIABLE = "PABENCH_API_KEY"  # not an option: those show in the process list
_MAX_REASON_CHARS = 1000


class EngineTarget:
    """See targets.Target. `session` exists once the engine has been examined."""

    level = "http"

    def __init__(self, url: str, *, dialect: str | None, model: str | None, probe: str | None) -> None:
        self.url = base_url(url)
        self.locator = f"--url {self.url}"
        self._spoken = {"dialect_name": dialect, "model": model, "probe": probe}
        self._session: EngineSession | None = None

    @property
    def session(self) -> EngineSession:
        """The engine under test."""
        if self._session is None:
            raise RuntimeError("the engine is examined when tests begin to run")
        return self._session

    @property
    def gone(self) -> str | None:
        """See Target."""
        return self.session.gone

    @property
    def impl(self) -> str:
        """See Target."""
        return self.session.impl

    def open(self, profile: Profile, seed: int) -> None:
        """Examine the engine and connect to it."""
        self._session = open_session(
            self.url, profile, seed, api_key=os.environ.get(API_KEY_VARIABLE), **self._spoken
        )

    def smoke(self) -> str:
        """One short ring."""
        if self.session.spec is None:
            return "ok"
        engine = EngineUnderTest(self.session, np.random.default_rng(self.session.seed))
        try:
            engine.ask([Ask(rings_of_prompt_lengths(engine.spec, engine.rng, [11])[0], 8, "smoke ring")])
        except (RequirementFailed, EngineError) as error:
            return clean(str(error), _MAX_REASON_CHARS)
        return "ok"

    def told(self) -> dict[str, Any]:
        """See Target."""
        facts, spec = self.session.facts, self.session.spec
        return {
            "dialect": facts.dialect, "model": facts.model, "version": facts.version,
            "max_context_tokens": facts.max_context_tokens, "kv": asdict(facts.kv) if facts.kv else None,
            "capabilities": sorted(facts.capabilities), "probe": spec.preset if spec else None,
        }

    def circumstances(self) -> dict[str, str | None]:
        """See Target."""
        facts = self.session.facts
        return {"dialect": facts.dialect, "version": facts.version, "kv_mode": facts.kv.kv_mode if facts.kv else None}

    def lacks(self, requirement: Requirement) -> str:
        """See Target."""
        missing = [need for need in requirement.needs if need not in self.session.facts.capabilities]
        if missing:
            return f"the engine lacks {', '.join(missing)}"
        if requirement.probe and self.session.spec is None:
            return "the engine does not serve the KV probe, which alone can tell this"
        return ""

    def subject(self, rng: np.random.Generator, drawn: Mapping[str, Any] | None) -> EngineUnderTest:
        """See Target. What is drawn again is of the geometry that the case file tells."""
        geometry = None
        if drawn is not None:
            try:
                geometry = Geometry(**drawn["geometry"])
            except (KeyError, TypeError) as error:
                raise UsageError(f"the case file tells no geometry: {error}") from error
        return EngineUnderTest(self.session, rng, geometry)

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """The client bounds every request and every case."""
        return contextlib.nullcontext()

    def still_lives(self) -> bool:
        """See Target."""
        return self.session.still_lives()

    def close(self) -> None:
        """See Target."""
        if self._session is not None:
            self._session.close()

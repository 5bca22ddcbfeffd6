"""An engine at a URL as what a run asks."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pabench.conformance.engine import EngineUnderTest
from pabench.conformance.exchange import Geometry, exchange_as_json
from pabench.conformance.launched import LaunchedEngine, News, find_killer
from pabench.conformance.profiles import Profile
from pabench.conformance.prompts import rings_of_prompt_lengths
from pabench.conformance.registry import Requirement
from pabench.conformance.session import EngineSession, open_session
from pabench.conformance.targets import Subject
from pabench.conformance.verify import Ask
from pabench.engines.address import DEFAULT_URL, READY_TIMEOUT_S, base_url, parse_launch
from pabench.engines.cleaning import clean, without_key, without_secrets
from pabench.engines.keys import API_KEY_VARIABLE, key_in
from pabench.errors import EngineError, RequirementFailed, UsageError

_MAX_REASON_CHARS = 1000
_IMAGES = "images"
# Needed by all that is asked of a probe with windows, and by nothing else -> the preset, and what others have not.
_WINDOWS = {"window": ("window", "sliding window in all layers"), "mixed_windows": ("mixed", "windows in some layers")}


class EngineTarget:
    """See targets.Target. `session` exists once the engine has been examined.

    With `launch`, a command line, the engine is started here, and again when it has died; its output goes to `folder`.
    """

    level = "http"

    def __init__(
        self, url: str | None, *, dialect: str | None, model: str | None, probe: str | None,
        launch: str | None = None, ready_timeout_s: float = READY_TIMEOUT_S, folder: Path | None = None,
    ) -> None:
        self._api_key = key_in(API_KEY_VARIABLE)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._launched: LaunchedEngine | None = None
        self._news: News = lambda text: None
        if launch is not None:
            words = parse_launch(launch, url)
            if folder is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="pabench-", ignore_cleanup_errors=True)
                folder = Path(self._temporary.name)
            self._launched = LaunchedEngine(words, url or DEFAULT_URL, folder, ready_timeout_s, self._tell)
            url = self._launched.url
        assert url is not None, "one of them is given"
        self.url = base_url(url)
        self.locator = _locator(self.url if launch is None or "{port}" not in launch else None, launch, dialect, model,
                                probe)
        self._spoken = {"dialect_name": dialect, "model": model, "probe": probe}
        self._session: EngineSession | None = None
        self._given_up = False  # an engine that is gone is not to be started again

    def _tell(self, text: str) -> None:
        self._news(text)

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

    def open(self, profile: Profile, seed: int, news: News) -> None:
        """Start the engine where that is asked for, examine it and connect to it."""
        self._news = news
        if self._launched is not None:
            self._launched.start()
        self._session = open_session(
            self.url, profile, seed, api_key=self._api_key, **self._spoken
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
        spec = self.session.spec
        asked = next((need for need in requirement.needs if need in _WINDOWS), None)
        has = None if spec is None or spec.window is None else "mixed_windows" if spec.full_layers else "window"
        if asked is not None and asked != has:
            name, what = _WINDOWS[asked]
            return f"the model that is served has no {what}: serve the preset {name!r} to have this asked"
        if spec is not None and has is not None and asked is None:
            return (f"probe {spec.preset!r} sees no further than {spec.window} tokens and knows no salts: serve the "
                    "preset 'gqa' to have this asked")
        if _IMAGES in requirement.needs and (spec is None or not spec.picture_side):
            return "no probe that sees pictures is served: serve the preset 'vision' to have this asked"
        missing = [need for need in requirement.needs if need not in self.session.facts.capabilities]
        if missing:
            return f"the engine lacks {', '.join(missing)}"
        if requirement.probe and spec is None:
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

    def make_ready(self) -> None:
        """See Target. An engine that a request has ended once more is started when there is more to ask, not before:
        large models take minutes.
        """
        end = self.session.gone
        if self._launched is None or end is None or self._given_up:
            return
        try:
            self._launched.start()
            self.session.gone = None
        except (EngineError, UsageError) as error:
            self._give_up(end, error)

    def starts(self) -> tuple[int, float]:
        """See Target."""
        return (self._launched.starts, self._launched.starting_s) if self._launched is not None else (0, 0.0)

    def _give_up(self, end: str, error: Exception) -> str:
        self._given_up = True
        self.session.gone = f"{end}; not to be started again: {without_key(str(error), self._api_key)}"
        return self.session.gone

    def recover(self, subject: Subject) -> str:
        """Start the engine again and look for the request that it died of."""
        if self._launched is None or not isinstance(subject, EngineUnderTest):
            return ""
        end = without_key(self._launched.end(), self._api_key)
        try:
            self._launched.start()
            self.session.gone = None
            killer, found = find_killer(self.session, subject.exchanges)
        except (EngineError, UsageError) as error:
            return self._give_up(end, error)
        if killer is not None:
            subject.killer = {**exchange_as_json(killer), "curl": self.session.curl(killer)}
        return f"{end}; {found}"

    def close(self) -> None:
        """See Target."""
        try:
            if self._session is not None:
                self._session.close()
        finally:
            if self._launched is not None:
                self._launched.stop()
            if self._temporary is not None:
                self._temporary.cleanup()


def _locator(
    url: str | None, launch: str | None, dialect: str | None, model: str | None, probe: str | None
) -> str:
    """The options that reach the same engine once more."""
    given = {"--url": url, "--launch": None if launch is None else without_secrets(launch), "--dialect": dialect,
             "--model": model, "--probe": probe}
    return shlex.join([word for option, value in given.items() if value is not None for word in (option, value)])

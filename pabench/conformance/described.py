"""What the engine under test is, as far as a case is made by it: its model, its sizes, its capabilities, its pace."""

from __future__ import annotations

from pabench.conformance.exchange import Geometry
from pabench.conformance.profiles import Profile
from pabench.conformance.session import EngineSession
from pabench.conformance.targets import unsupported
from pabench.engines.base import EngineFacts
from pabench.probe import PRESETS, ProbeSpec

ASSUMED_BLOCK_SIZE = 16   # where the engine does not tell: edges of larger powers of two are among its multiples
_SMALLEST_EDGE = 8        # tokens: shorter rings and forks say nothing
_STAND_IN = PRESETS["long"]  # the most tokens, so that rings for other models are never short of them


class DescribedEngine:
    """What `engine` tells without being asked anything."""

    def __init__(self, session: EngineSession, geometry: Geometry) -> None:
        self.facts: EngineFacts = session.facts
        self.profile: Profile = session.profile
        self.geometry = geometry
        self._session = session

    @property
    def spec(self) -> ProbeSpec:
        """The KV probe that it serves; for another model, the one whose prompts are drawn and put in its words."""
        return self._session.spec or _STAND_IN

    @property
    def is_probe(self) -> bool:
        """Whether it serves the KV probe: then answers are checked by its oracle, else by self-consistency."""
        return self._session.spec is not None

    @property
    def block_size(self) -> int | None:
        """Tokens a block, where the engine tells."""
        return self.geometry.block_size

    @property
    def edge(self) -> int:
        """Block size to choose lengths by: the engine's, or an assumed one; so many tiny ones as make 8."""
        block = self.block_size or ASSUMED_BLOCK_SIZE
        return block * -(-_SMALLEST_EDGE // block)

    @property
    def block_text(self) -> str:
        """The block size, and what lengths are chosen by where that is another, for `case`."""
        if self.block_size is None:
            return f"block {self.edge} (assumed: the engine does not tell)"
        return f"block {self.block_size}" + ("" if self.edge == self.block_size else f", lengths by {self.edge}")

    @property
    def longest(self) -> int:
        """Longest sequence, prompt and output, that the engine can hold."""
        context = self.geometry.context_tokens or self._session.context_tokens
        return min(context, self.geometry.capacity_tokens or context)

    def can(self, capability: str) -> bool:
        """Whether the engine has `capability`, one of engines.base.CAPABILITIES."""
        return capability in self.facts.capabilities

    def need(self, capability: str, why: str) -> None:
        """Skip the test, as UNSUPPORTED, where the engine lacks `capability`."""
        if not self.can(capability):
            unsupported(f"{why}: the engine lacks {capability}")

    @property
    def cadence_s(self) -> float:
        """Seconds between two renewals of the engine's gauges; 0 where each of its steps renews them."""
        return self._session.cadence_s

    @property
    def disconnect_s(self) -> float:
        """Seconds until the engine notices that a client has left."""
        return self._session.client.dialect.disconnect_s

    @property
    def settle_s(self) -> float:
        """Seconds within which the gauges have to show the truth, whenever they are renewed and whoever has left."""
        return self.profile.settle_s + self.disconnect_s + self.cadence_s

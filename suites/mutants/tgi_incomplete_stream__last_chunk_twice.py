"""The last chunk of a stream is sent twice (the entry's llama.cpp #10997)."""

from __future__ import annotations

from reference_engine.scheduling.sequence import Request, TokenOutput
from reference_engine.serving.answers import Answer

BUG = "tgi-incomplete-stream"
MUST_FAIL = ("http/finish-once",)
ENGINE_ARGS: tuple[str, ...] = ()


def apply() -> None:
    """The end without a token, once more."""
    event = Answer.event

    def event_twice(self: Answer, request: Request, output: TokenOutput) -> bytes:
        made = event(self, request, output)
        if output.finish_reason is None or output.logprobs is not None:
            return made
        return made + self._token_event(self._prompt_of[request.id] * self._job.params.n + output.index, "", [], [])

    Answer.event = event_twice  # type: ignore[method-assign]

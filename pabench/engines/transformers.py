"""`transformers serve`: text prompts, one sample, unknown fields refused with 422, no metrics, no `[DONE]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from pabench.engines.base import GenerationRequest
from pabench.engines.openai import COMPLETIONS_PATH, OpenAIDialect, require_plain, require_text
from pabench.errors import UsageError
from pabench.telemetry.vocabulary import MetricFamilies

_NO_EOS = -1  # an id that no token has


class TransformersDialect(OpenAIDialect):
    """The server of Hugging Face transformers 5.

    The length and the end of an answer go through `generation_config`, a JSON text, since `ignore_eos` is refused.
    Under continuous batching the first request's sampling settings hold for all, so "sampling" is no capability.
    """

    name = "transformers"
    own_route: str | None = "/load_model"
    capabilities: frozenset[str] = frozenset({"ignore_eos", "stream", "usage"})

    def build(self, request: GenerationRequest, model: str) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of `request`. Raises UsageError for several samples and for logprobs."""
        require_text(request, self.name)
        require_plain(request, self.name, but=("top_k",))
        if request.chat:
            raise UsageError(f"dialect {self.name!r} is asked for completions alone, got a chat")
        if request.n != 1:
            raise UsageError(f"dialect {self.name!r} gives one sample a request, got n={request.n}: send n requests")
        if request.logprobs:
            raise UsageError(f"dialect {self.name!r} has no logprobs: ask without them")
        body: dict[str, Any] = {
            "model": model,
            "prompt": request.prompt,
            "stream": request.stream,
            "generation_config": orjson.dumps(_generation_config(request)).decode(),
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return COMPLETIONS_PATH, body

    def recognises(self, models: Mapping[str, Any], metrics: MetricFamilies, headers: Mapping[str, str]) -> bool:
        """By uvicorn answering with a request id of its own and no metrics; doctor then asks for `own_route`."""
        names = {name.lower(): value for name, value in headers.items()}
        return not metrics and "x-request-id" in names and names.get("server") == "uvicorn"


def _generation_config(request: GenerationRequest) -> dict[str, Any]:
    config: dict[str, Any] = {"max_new_tokens": request.max_tokens, "do_sample": request.temperature > 0}
    if request.ignore_eos:
        config["eos_token_id"] = _NO_EOS
    if request.temperature > 0:
        config |= {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
    return config

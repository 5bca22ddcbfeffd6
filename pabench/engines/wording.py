"""Prompts of token ids as words, for engines that take only text. The one place where this is done."""

from __future__ import annotations

from dataclasses import replace

from pabench.engines.base import Dialect, GenerationRequest
from pabench.probe import Codec


def worded(request: GenerationRequest, dialect: Dialect) -> GenerationRequest:
    """`request` as `dialect` can say it: ids become the probe's words where the dialect lacks "token_ids".

    The words are those of the probe's tokenizer, so on any other model the prompt would not be what the ids mean.
    """
    if isinstance(request.prompt, str) or "token_ids" in dialect.capabilities:
        return request
    return replace(request, prompt=Codec.encode(request.prompt))

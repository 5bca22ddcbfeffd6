"""Log-probabilities in the three shapes that clients know: OpenAI's two, and vLLM's of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from reference_engine.scheduling.sequence import TokenLogprobs
from reference_engine.serving.tokenizer import Tokenizer


class Told(NamedTuple):
    """A token with what is known of it (None: nothing comes before it), and where its text begins."""

    token_id: int
    logprobs: TokenLogprobs | None
    offset: int


def completion_logprobs(tokenizer: Tokenizer, told: Sequence[Told]) -> dict[str, Any]:
    """OpenAI's for completions: four lists. The chosen token is among the top ones, likely or not.

    Several tokens may have one text: it shows the likeliest of them, or the chosen one.
    """
    piece = tokenizer.piece
    lists: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for token_id, logprobs, offset in told:
        name = piece(token_id)
        lists["text_offset"].append(offset)
        lists["tokens"].append(name)
        if logprobs is None:
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
        else:
            chosen = _finite(logprobs.chosen)
            lists["token_logprobs"].append(chosen)
            top = {name: chosen}
            for token, logprob in logprobs.top:  # likeliest first
                top.setdefault(piece(token), _finite(logprob))
            lists["top_logprobs"].append(top)
    return lists


def chat_logprobs(tokenizer: Tokenizer, told: Sequence[Told]) -> dict[str, Any]:
    """OpenAI's for chats: a list of objects."""
    content = []
    for token_id, logprobs, _ in told:
        assert logprobs is not None
        top = [_chat_logprob(tokenizer, token, lp) for token, lp in logprobs.top]
        content.append(_chat_logprob(tokenizer, token_id, logprobs.chosen) | {"top_logprobs": top})
    return {"content": content}


def _chat_logprob(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    piece = tokenizer.piece(token_id)
    return {"token": piece, "logprob": _finite(logprob), "bytes": list(piece.encode())}


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], told: Sequence[TokenLogprobs | None], count: int
) -> list[dict[str, Any] | None]:
    """vLLM's: of each token of the prompt itself and the `count` likeliest, by token id; null for the first."""
    entries: list[dict[str, Any] | None] = []
    for token_id, logprobs in zip(prompt, told, strict=True):
        if logprobs is None:
            entries.append(None)
            continue
        shown = [(token_id, logprobs.chosen, logprobs.rank)]
        shown += [(token, lp, rank) for rank, (token, lp) in enumerate(logprobs.top[:count], 1) if token != token_id]
        entries.append({
            str(token): {"logprob": _finite(lp), "rank": rank, "decoded_token": tokenizer.piece(token)}
            for token, lp, rank in shown
        })
    return entries


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, -9999.0)

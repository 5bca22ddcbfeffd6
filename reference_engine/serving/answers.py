"""Tokens to JSON in the shapes of OpenAI's API as vLLM writes them: whole answers, and chunks of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from reference_engine.scheduling.sequence import TokenOutput
from reference_engine.serving.protocol import Job
from reference_engine.serving.tokenizer import Tokenizer


@dataclass(slots=True)
class _Choice:
    """What one choice has so far."""

    text: list[str] = field(default_factory=list)
    text_len: int = 0
    token_ids: list[int] = field(default_factory=list)
    outputs: list[tuple[TokenOutput, int]] = field(default_factory=list)  # with the text offset of each
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def started(self) -> bool:
        """Whether it has a token."""
        return bool(self.token_ids)

    def add(self, output: TokenOutput) -> int:
        """Take a token in; returns where its text begins."""
        offset = self.text_len
        self.text.append(output.text)
        self.text_len += len(output.text)
        self.token_ids.append(output.token_id)
        if output.logprobs is not None:
            self.outputs.append((output, offset))
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        return offset


class Answer:
    """One answer in the making: feed it tokens, take chunks or the whole. Choices: prompt by prompt, n each."""

    def __init__(self, job: Job, model: str, tokenizer: Tokenizer, request_id: str) -> None:
        self._job, self._tokenizer = job, tokenizer
        self._choices = [_Choice() for _ in range(len(job.prompts) * job.params.n)]
        self._head = {
            "id": ("chatcmpl-" if job.chat else "cmpl-") + request_id,
            "object": self._kind(whole=not job.stream),
            "created": int(time.time()),
            "model": model,
        }

    def _kind(self, *, whole: bool) -> str:
        if not self._job.chat:
            return "text_completion"
        return "chat.completion" if whole else "chat.completion.chunk"

    def usage(self) -> dict[str, Any]:
        """Token counts so far."""
        prompt = sum(len(p) for p in self._job.prompts)
        made = sum(len(choice.token_ids) for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
                "prompt_tokens_details": {"cached_tokens": 0}}

    def add(self, prompt: int, output: TokenOutput) -> None:
        """Take in a token of a whole answer."""
        self._choices[prompt * self._job.params.n + output.index].add(output)

    def chunks(self, prompt: int, output: TokenOutput) -> list[dict[str, Any]]:
        """The chunks of a stream that a token gives: itself, and before a chat's first token the role."""
        index = prompt * self._job.params.n + output.index
        choice = self._choices[index]
        first = not choice.started
        offset = choice.add(output)
        if not self._job.chat:
            return [self._completion_chunk(index, prompt, output, offset, first)]
        chunks = [self._role_chunk(index, prompt)] if first else []
        chunks.append(self._chunk({
            "index": index,
            "delta": {"content": output.text},
            "logprobs": self._chat_logprobs([output]) if output.logprobs else None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
            "token_ids": [output.token_id] if self._job.return_token_ids else None,
        }))
        return chunks

    def _completion_chunk(
        self, index: int, prompt: int, output: TokenOutput, offset: int, first: bool
    ) -> dict[str, Any]:
        ids = self._job.return_token_ids
        return self._chunk({
            "index": index,
            "text": output.text,
            "logprobs": self._completion_logprobs([(output, offset)]) if output.logprobs else None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
            "prompt_token_ids": self._job.prompts[prompt] if ids and first else None,
            "token_ids": [output.token_id] if ids else None,
        })

    def _role_chunk(self, index: int, prompt: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        chunk = self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        chunk["prompt_token_ids"] = self._job.prompts[prompt] if self._job.return_token_ids else None
        return chunk

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": self.usage()} if self._job.continuous_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk without choices that ends a stream when include_usage is set."""
        return {**self._head, "choices": [], "usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
        shape = self._chat_choice if self._job.chat else self._completion_choice
        body = {**self._head, "choices": [shape(i, c) for i, c in enumerate(self._choices)], "usage": self.usage()}
        if self._job.chat:
            body["prompt_token_ids"] = self._job.prompts[0] if self._job.return_token_ids else None
        return body

    def _completion_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        ids = self._job.return_token_ids
        return {
            "index": index,
            "text": "".join(choice.text),
            "logprobs": self._completion_logprobs(choice.outputs) if choice.outputs else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "prompt_token_ids": self._job.prompts[index // self._job.params.n] if ids else None,
            "token_ids": choice.token_ids if ids else None,
        }

    def _chat_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.text)},
            "logprobs": self._chat_logprobs([output for output, _ in choice.outputs]) if choice.outputs else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if self._job.return_token_ids else None,
        }

    def _completion_logprobs(self, outputs: list[tuple[TokenOutput, int]]) -> dict[str, Any]:
        piece = self._tokenizer.piece
        lists: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for output, offset in outputs:
            assert output.logprobs is not None
            top = {piece(token): _finite(lp) for token, lp in output.logprobs.top}
            lists["text_offset"].append(offset)
            lists["token_logprobs"].append(_finite(output.logprobs.chosen))
            lists["tokens"].append(piece(output.token_id))
            lists["top_logprobs"].append({piece(output.token_id): _finite(output.logprobs.chosen), **top})
        return lists

    def _chat_logprobs(self, outputs: list[TokenOutput]) -> dict[str, Any]:
        content = []
        for output in outputs:
            assert output.logprobs is not None
            top = [self._chat_logprob(token, lp) for token, lp in output.logprobs.top]
            content.append(self._chat_logprob(output.token_id, output.logprobs.chosen) | {"top_logprobs": top})
        return {"content": content}

    def _chat_logprob(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self._tokenizer.piece(token_id)
        return {"token": piece, "logprob": _finite(logprob), "bytes": list(piece.encode())}


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, -9999.0)

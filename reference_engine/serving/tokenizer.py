"""Text to ids and back, stop strings, and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.decoders import DecodeStream

from pabench.errors import UsageError
from reference_engine.model.config import read_json
from reference_engine.serving.chat_template import render

_LONG_TEXT = 10_000  # characters
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, and what tokenizer_config.json says about chats."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{folder} has no tokenizer.json")
        try:
            self._hf = HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception for a malformed file
            raise UsageError(f"{path} cannot be read as a tokenizer: {error}") from error
        self._hf.no_truncation()
        self._hf.no_padding()
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path, "the tokenizer's config cannot be read") if config_path.is_file() else {}
        self._special = {k: _content(config[k]) for k in _SPECIAL if config.get(k)}
        self._template = _chat_template(folder, config)
        self._pieces: dict[int, str] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of a text."""
        return tuple(self._encoding(text, add_special_tokens).ids)

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a text, and at which character each begins; an added token has the place of the one before it."""
        encoding = self._encoding(text, add_special_tokens)
        starts = accumulate((start for start, _ in encoding.offsets), max)
        return tuple(encoding.ids), tuple(starts)

    def _encoding(self, text: str, add_special_tokens: bool) -> Encoding:
        if len(text) > _LONG_TEXT:  # encode() keeps all other threads waiting, encode_batch() does not
            return self._hf.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        return self._hf.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self._hf.decode(list(token_ids), skip_special_tokens=False)

    def decode_with_offsets(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Text of ids, and at which character each begins, as far as whole characters tell."""
        pieces = _Pieces(self._hf, skip_special_tokens=False)
        lengths = [len(pieces.next(token)) for token in token_ids]
        return self.decode(token_ids), tuple(accumulate(lengths, initial=0))[:-1]

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them."""
        return [self._hf.id_to_token(token) or "" for token in token_ids]

    def piece(self, token_id: int) -> str:
        """A token on its own, as shown beside log-probabilities; special tokens too."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._hf.decode([token_id], skip_special_tokens=False)
        return self._pieces[token_id]

    def stream(self, stop: Sequence[str] = (), *, include_stop: bool = False) -> TextStream:
        """A text in the making."""
        return TextStream(self._hf, tuple(stop), include_stop)

    @property
    def template_takes_parts(self) -> bool:
        """Whether the template looks at the types of a message's parts, as those of models that see do."""
        return self._template is not None and "type" in self._template

    def chat_text(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it. Raises UsageError where it cannot."""
        if self._template is None:
            raise UsageError("the model has no chat template, use /v1/completions")
        return render(self._template, messages, self._special, add_generation_prompt=add_generation_prompt)


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # named templates: the default one
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


class _Pieces:
    """Text of tokens as they come: of each what it makes whole."""

    __slots__ = ("_decoder", "_hf", "_skip")

    def __init__(self, hf: HFTokenizer, *, skip_special_tokens: bool) -> None:
        self._hf, self._skip = hf, skip_special_tokens
        self._decoder = DecodeStream(skip_special_tokens=skip_special_tokens)

    def next(self, token_id: int) -> str:
        """The text that this token makes whole."""
        try:
            return self._decoder.step(self._hf, token_id) or ""
        except Exception as error:  # tokenizers has no type of its own for it
            if "Invalid prefix" not in str(error):
                raise
            # Bytes that make no text (any model may choose them) were held back, and text came behind them.
            self._decoder = DecodeStream(skip_special_tokens=self._skip)
            return self._hf.decode([token_id], skip_special_tokens=self._skip)


class TextStream:
    """Text of one choice, token by token. Holds back what may be the beginning of a stop string."""

    __slots__ = ("_held", "_include_stop", "_pieces", "_stop")

    def __init__(self, hf: HFTokenizer, stop: tuple[str, ...], include_stop: bool) -> None:
        self._stop, self._include_stop = stop, include_stop
        self._pieces = _Pieces(hf, skip_special_tokens=True)
        self._held = ""

    def push(self, token_id: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """(text that is now certain, the stop string that it ran into). Without `may_stop`, stop strings are text."""
        piece = self._pieces.next(token_id)
        if not self._stop:
            return piece, None
        text = self._held + piece
        if may_stop:
            found = [(at, -len(s), s) for s in self._stop if (at := text.find(s)) >= 0]
            if found:
                at, _, stop = min(found)
                self._held = ""
                return text[: at + len(stop) if self._include_stop else at], stop
        keep = max((_overlap(text, s) for s in self._stop), default=0) if may_stop else 0
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, when the choice ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than all of it."""
    return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-k:])), 0)

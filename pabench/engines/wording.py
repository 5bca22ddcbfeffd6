"""Prompts of token ids in the words, or the ids, of the model that is served. The one place where this is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pabench.engines.base import Dialect, GenerationRequest, ImagePart
from pabench.probe import FIRST_SALT, Codec, Picture, ProbePrompt

# Common words that most tokenizers keep whole. Lengths of text prompts are therefore near, not exact.
COMMON_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area",
    "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member",
    "law", "car", "city", "name", "president", "team", "minute", "idea", "body", "information", "back", "parent",
    "face", "level", "office", "door", "health", "person", "art", "war", "history", "party", "result", "change",
)

# Every real tokenizer has more tokens than this, so ids below it can be sent to a model of which nothing is known.
PLAIN_VOCAB_SIZE = 2048


def worded(request: GenerationRequest, dialect: Dialect) -> GenerationRequest:
    """`request` as `dialect` can say it: ids become words in a chat, and where the dialect lacks "token_ids".

    The words are those of the probe's tokenizer, so on any other model the prompt would not be what the ids mean.
    """
    if isinstance(request.prompt, str) or ("token_ids" in dialect.capabilities and not request.chat):
        return request
    return replace(request, prompt=Codec.encode(request.prompt))


def image_part(prompt: ProbePrompt, picture: Picture, name: str | None = None) -> ImagePart:
    """`picture` in place of its tokens in `prompt`, which stand there in a row."""
    start = prompt.prompt.index(picture.tokens[0])
    return ImagePart(start, start + len(picture.tokens), picture.uri, name)


def plain(ids: Sequence[int], *, as_text: bool) -> tuple[int, ...] | str:
    """The probe's `ids` for a model that is not the probe: as ids that it surely has, or a common word for each.

    Prompts that begin alike still do, and those that part still part (most of the time, as words); a ring's tokens
    are no longer distinct. As text, lengths in tokens are near, not exact.
    """
    if as_text:
        return " ".join(COMMON_WORDS[token % len(COMMON_WORDS)] for token in ids)
    span = PLAIN_VOCAB_SIZE - FIRST_SALT
    return tuple(token if token < FIRST_SALT else FIRST_SALT + (token - FIRST_SALT) % span for token in ids)

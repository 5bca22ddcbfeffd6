"""Token ids as words and back: the probe's tokens are words, so engines that take only text can be probed too."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pabench.probe.spec import EOS, PAD, SEP, UNK

SPECIAL_WORDS = {SEP: "<sep>", EOS: "<eos>", PAD: "<pad>", UNK: "<unk>"}
_IDS = {word: token for token, word in SPECIAL_WORDS.items()}
_WORD = re.compile(r"<sep>|<eos>|<pad>|<unk>|\bt([0-9]{1,9})\b|\S+")


class Codec:
    """Words of the probe's tokenizer: "t300" is token 300, and the special tokens have names of their own."""

    @staticmethod
    def word(token: int) -> str:
        """The word of one id."""
        return SPECIAL_WORDS.get(token, f"t{token}")

    @staticmethod
    def encode(ids: Iterable[int]) -> str:
        """Text that the probe's tokenizer turns into exactly `ids`."""
        return " ".join(map(Codec.word, ids))

    @staticmethod
    def decode(text: str) -> list[int]:
        """Ids of the words in `text`; anything that is no word of the probe becomes UNK, so that it shows."""
        ids = []
        for match in _WORD.finditer(text):
            digits = match.group(1)
            ids.append(int(digits) if digits else _IDS.get(match.group(), UNK))
        return ids

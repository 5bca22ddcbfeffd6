"""How long a step takes: a linear law of what is in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pabench.errors import UsageError


@dataclass(frozen=True, slots=True)
class StepLaw:
    """Seconds of one step. The defaults are roughly OPT-13B in float16 on one A100-40G, from its data sheet:

    base_s               26 GB of weights read once at 1.55 TB/s
    per_prefill_token_s  26 GFLOP at half of 312 TFLOP/s, for each token of a prompt that is computed
    per_decode_seq_s     sampling and book-keeping of a sequence that makes one token (a guess)
    per_context_token_s  800 KB of keys and values read at 1.55 TB/s, for each token so far of each sequence in the step
    per_swapped_token_s  800 KB moved over PCIe at 52 GB/s, and its share of 3.5 us a copy in blocks of 16
    """

    base_s: float = 0.017
    per_prefill_token_s: float = 1.7e-4
    per_decode_seq_s: float = 5e-5
    per_context_token_s: float = 5e-7
    per_swapped_token_s: float = 3.3e-5

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if wrong := {name: value for name, value in values.items() if not (value >= 0 and math.isfinite(value))}:
            raise UsageError(f"the step law has {wrong}, expected numbers of seconds from 0 up")
        if self.base_s + self.per_decode_seq_s + self.per_context_token_s == 0:
            raise UsageError("by this step law a decoding step takes no time: give base_s, per_decode_seq_s or "
                             "per_context_token_s")

    def seconds(self, prefill_tokens: int, decodes: int, context_tokens: int, swapped_tokens: int = 0) -> float:
        """Time of a step of so many prompt tokens, sequences that decode, tokens of context, tokens swapped."""
        return (self.base_s + self.per_prefill_token_s * prefill_tokens + self.per_decode_seq_s * decodes
                + self.per_context_token_s * context_tokens + self.per_swapped_token_s * swapped_tokens)

    @classmethod
    def parse(cls, text: str) -> StepLaw:
        """A law from `term=seconds,term=seconds`; terms that are not named take no time."""
        terms = dict.fromkeys((field.name for field in fields(cls)), 0.0)
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = None
            if name.strip() not in terms or seconds is None:
                raise UsageError(f"{part!r} is no term of a step law, expected {'=SECONDS, '.join(terms)}=SECONDS, as "
                                 "many as wanted, with commas between them")
            terms[name.strip()] = seconds
        return cls(**terms)

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name):g}" for field in fields(self))

"""Speculative decoding: cheap guesses at the next tokens, which the model checks all in one pass.

A guess that equals the token that the model chooses there saves a step; from the first that differs on, all are
dropped, and the slots they were computed in are written anew. What is chosen at a place depends on the text before it
and on the seed alone, so guesses change how fast tokens come, never which.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Protocol

import torch

from reference_engine.config import EngineConfig
from reference_engine.memory.allocator import Allocator
from reference_engine.model.families import check_draft_model
from reference_engine.model.loader import load_model
from reference_engine.model.transformer import Transformer
from reference_engine.runner import Runner
from reference_engine.sampling.ngram import NgramIndex
from reference_engine.sampling.sampler import Sampler
from reference_engine.scheduling.sequence import Sequence
from reference_engine.scheduling.step import Step


class Proposer(Protocol):
    """Where guesses come from."""

    def propose(self, step: Step) -> None:
        """Fill step.drafts: for a sequence with draft_room d at most d tokens, for any other none."""
        ...


class NgramProposer:
    """Guesses that a sequence goes on as it did before. Costs a few dictionary look-ups a step, and no model."""

    def propose(self, step: Step) -> None:
        """See Proposer."""
        for seq in step.sequences:
            if room := step.draft_room.get(seq.id):
                if seq.ngrams is None:
                    seq.ngrams = NgramIndex()
                if drafts := seq.ngrams.propose(seq.tokens, room):
                    step.drafts[seq.id] = drafts


class DraftProposer:
    """Lets a smaller model with the same tokens guess.

    Its runner has a KV pool of its own under the target's block tables, and does the same moves. In each step it
    computes all that the target is about to compute, so at the end of a step `seq.num_drafted` is num_computed, or one
    less where all drafts were accepted: nobody has fed it the last of them yet, and the next step makes up for that.
    In particular a block that the prefix cache learns of holds the keys and values of both models.
    """

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self.runner, self.sampler = runner, sampler

    def propose(self, step: Step) -> None:
        """See Proposer. Chooses as the target does, with the same random numbers."""
        self.runner.move(step)
        guessing = [seq for seq in step.sequences if seq.id in step.draft_room]
        logits = self._catch_up(step)
        while guessing:
            drafts = [step.drafts.setdefault(seq.id, []) for seq in guessing]
            tokens = self.sampler.choose(logits, guessing, drafts).tolist()
            for mine, token in zip(drafts, tokens, strict=True):
                mine.append(token)
            guessing = [seq for seq in guessing if len(step.drafts[seq.id]) < step.draft_room[seq.id]]
            if guessing:
                logits = self._compute(guessing, [[step.drafts[seq.id][-1]] for seq in guessing], [1] * len(guessing))

    def _catch_up(self, step: Step) -> torch.Tensor:
        """Compute what the target is about to. Logits [sequences that get drafts, vocab_size] of their last tokens."""
        texts = [
            seq.tokens[seq.num_drafted : seq.num_computed + num_new]
            for seq, num_new in zip(step.sequences, step.num_new, strict=True)
        ]
        return self._compute(step.sequences, texts, [int(seq.id in step.draft_room) for seq in step.sequences])

    def _compute(
        self, seqs: SequenceOf[Sequence], texts: SequenceOf[list[int]], num_logits: SequenceOf[int]
    ) -> torch.Tensor:
        """One pass over the next tokens of each sequence, `texts[i]` from position num_drafted on."""
        logits = self.runner.compute(seqs, [seq.num_drafted for seq in seqs], texts, num_logits)
        for seq, text in zip(seqs, texts, strict=True):
            seq.num_drafted += len(text)
        return logits


def build_proposer(
    config: EngineConfig, target: Transformer, allocator: Allocator, sampler: Sampler
) -> Proposer | None:
    """The proposer that the config names, None for none. Raises UsageError for a draft model that does not fit."""
    if config.speculation == "ngram":
        return NgramProposer()
    if config.draft_model is None:
        return None
    check_draft_model(config.draft_model, target.config.vocab_size, config.max_model_len)
    draft = load_model(config.draft_model, target.dtype, target.device, config.max_model_len, config.weight_dtype)
    return DraftProposer(Runner.build(draft, config, allocator), sampler)

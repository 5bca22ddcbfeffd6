"""What the tests of speculation share."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference_engine.checkpoints import VOCAB
from tests.reference_engine.helpers import assert_idle, drain


def speculation(how, folders):
    if how in folders:
        return {"speculation": "draft", "draft_model": folders[how]}
    return {"speculation": how}


def prompts(*lengths):
    rng = np.random.default_rng(1)
    return [tuple(rng.integers(3, VOCAB, size).tolist()) for size in lengths]


def serve(engine, requests):
    """Outputs of each (prompt, params), choice by choice."""
    added = [engine.add(prompt, params) for prompt, params in requests]
    made = drain(engine)
    assert_idle(engine)
    return [made[request.id] for request in added]


def assert_same(ours, theirs):
    """Equal in all but the last digits of log-probabilities."""
    for a, b in zip(ours, theirs, strict=True):
        assert sorted(a) == sorted(b)
        for index in a:
            tell = [[(o.token_id, o.text, o.finish_reason, o.stop_reason) for o in x[index]] for x in (a, b)]
            assert tell[0] == tell[1]
            for mine, other in zip(a[index], b[index], strict=True):
                assert (mine.logprobs is None) == (other.logprobs is None)
                if mine.logprobs is not None:
                    assert mine.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-4)
                    assert [t for t, _ in mine.logprobs.top] == [t for t, _ in other.logprobs.top]


def assert_all_accepted(engine):
    assert engine.stats.accepted_draft_tokens == engine.stats.draft_tokens > 0

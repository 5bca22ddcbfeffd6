"""Gaps of samples that need no sorting are those of samples that do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pabench.analysis.latency import itl_ms, tpot_ms


def answers(times_s: list[list[float]], n: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"token_times_s": [np.array(row) for row in times_s],
                         "token_choices": [np.zeros(len(row), dtype=np.int64) for row in times_s], "n": n})


@given(st.lists(st.lists(st.floats(0, 100), max_size=8).map(sorted), max_size=6))
def test_one_sample_a_request_is_the_same_without_sorting(times_s: list[list[float]]) -> None:
    for figure in (itl_ms, tpot_ms):
        assert np.array_equal(figure(answers(times_s)), figure(answers(times_s, n=2)))


def test_stamps_that_changed_places_are_sorted() -> None:
    assert itl_ms(answers([[1.0, 3.0, 2.0], [0.5]])) == pytest.approx([1000, 1000])

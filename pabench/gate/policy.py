"""What a gate decides by: the figures, the change that matters in each, and how often it may err."""

from __future__ import annotations

from math import ceil, log2
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pabench.analysis.measures import check_measure
from pabench.errors import UsageError
from pabench.files import read_model
from pabench.resources import data_dir


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MetricPolicy(_Strict):
    """One figure. `worse_by`: the relative change for the worse that must not pass. `floor`, in the figure's own unit:
    a difference below it is none.
    """

    worse_by: float = Field(gt=0, lt=1)
    floor: float = Field(default=0.0, ge=0)


class Watched(_Strict):
    """Figures that are shown, and never decided by."""

    metrics: tuple[str, ...] = ()


class Policy(_Strict):
    """A gate's policy. `looks`: after so many pairs of runs it decides, if it can; the last one is the budget.

    `false_alarm` and `missed` hold for all figures and looks together; lost requests are judged beside them, at
    `false_alarm` too.
    """

    false_alarm: float = Field(default=0.01, gt=0, lt=0.5)
    missed: float = Field(default=0.05, gt=0, lt=0.5)
    looks: tuple[int, ...] = Field(default=(4, 8, 16, 32, 48), min_length=1)
    metrics: dict[str, MetricPolicy] = Field(alias="metric", min_length=1)
    watch: Watched = Watched()

    @model_validator(mode="after")
    def _sound(self) -> Policy:
        for name in (*self.metrics, *self.watch.metrics):
            check_measure(name)
        if twice := set(self.metrics) & set(self.watch.metrics):
            raise ValueError(f"decided by and only watched: {', '.join(sorted(twice))}")
        if min(self.looks) < 2 or list(self.looks) != sorted(set(self.looks)):
            raise ValueError(f"looks are {list(self.looks)}, expected rising numbers of pairs from 2 on")
        return self

    def shares_on_disk(self, pairs: int) -> int:
        """Into how many shares each error is cut where runs on disk are judged. Who judges them comes back with more,
        nobody knows how often: a share at each of the looks, and the one that is left over halved again and again, at
        each doubling beyond. Together they are the whole.
        """
        beyond = ceil(log2(pairs / self.looks[-1])) if pairs > self.looks[-1] else 0
        return (len(self.looks) + 1) << beyond

    def within(self, max_pairs: int | None) -> Policy:
        """This policy with a budget of `max_pairs`; None leaves it. Raises UsageError below two."""
        if max_pairs is None:
            return self
        if max_pairs < 2:
            raise UsageError(f"--max-pairs is {max_pairs}, expected 2 or more: one pair does not tell how runs differ")
        return self.model_copy(update={"looks": (*(look for look in self.looks if look < max_pairs), max_pairs)})


def load_policy(path: Path | None = None) -> Policy:
    """The policy in a TOML file; the one that ships when None. Raises UsageError of one line."""
    return read_model(data_dir("suites") / "gate.toml" if path is None else path, Policy, "policy")

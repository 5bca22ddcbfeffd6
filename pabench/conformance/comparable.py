"""Whether results tell of the same cases: where a requirement is asked more by now, one PASS is not the other.

The header has a digest of the level's cases; results of before it had one are of an older suite than any that has it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pabench.conformance.levels import level_of_id
from pabench.conformance.results import Results
from pabench.errors import UsageError


def older_suites(told: Iterable[tuple[str, Results]]) -> frozenset[tuple[str, str]]:
    """Place and level of those that tell no digest where others of that level do; `told`: place and results.

    Raises UsageError where two of one level and profile have different ones.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}  # level, profile -> digest, place
    silent, speaking = set(), set()
    for place, results in told:
        digest = results.header.suite
        for level in {level_of_id(row.requirement) for row in results.rows}:
            if digest is None:
                silent.add((place, level))
                continue
            speaking.add(level)
            if not digest:  # a part of the level, of a suite that can tell
                continue
            before, where = first.setdefault((level, results.header.profile), (digest, place))
            if before != digest:
                raise UsageError(f"{where} and {place} are of different suites, with other cases of level {level}: ask "
                                 "both anew with one version of pabench, or show them apart")
    return frozenset(each for each in silent if each[1] in speaking)

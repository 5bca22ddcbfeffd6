"""A journal whose thread meets what nobody expected."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from pabench.errors import UsageError
from pabench.load import RecordsUnwritable, journal
from pabench.load.connection import Exchange
from pabench.load.journal import Journal, Journaled, journal_path


@pytest.mark.parametrize("error", [MemoryError(), TypeError("Integer exceeds 64-bit range")])
def test_whatever_ends_the_writing_is_told_and_nothing_is_lost(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = journal._encode

    def encode(entry: Any, *others: Any) -> bytes:
        if entry.index == 2:
            raise error
        return genuine(entry, *others)

    monkeypatch.setattr(journal, "_encode", encode)
    path = journal_path(tmp_path, "0")
    written = Journal(path, 100.0)
    for index in range(5):
        written.add(Exchange(index, 101.0, times_s=array("d", [101.5]), pieces=[b"x"]))
    written.close()
    assert isinstance(written.error, RecordsUnwritable)
    assert f"cannot write {path}: {type(error).__name__}" in str(written.error)
    assert [one.index for one in written.left] == [2, 3, 4]
    assert {one.intended_s for one in written.left} == {1.0}
    with Journaled([path]) as found:
        assert list(found.exchanges) == [0, 1]


@pytest.mark.parametrize("entry", [
    b"5", b"[]", b"null", b"{}", b'{"sample": {"time_s": 1, "later_field": 2}}',
    b'{"exchange": {"index": 1, "intended_s": 0.0, "later_field": 2}, "num_pieces": 0, "num_bytes": 0}',
    b'{"exchange": {"index": 1, "intended_s": 0.0}, "num_pieces": -1, "num_bytes": 0}',
    b'{"exchange": {"index": 1, "intended_s": 0.0}, "num_pieces": 1.5, "num_bytes": 0}',
])
def test_an_entry_of_another_version_is_told_and_not_left_out(entry: bytes, tmp_path: Path) -> None:
    path = journal_path(tmp_path, "0")
    written = Journal(path, 100.0)
    written.add(Exchange(0, 101.0, times_s=array("d", [101.5]), pieces=[b"x"]))
    written.close()
    with path.open("ab") as file:
        file.write(entry + b"\n\n")
    with pytest.raises(UsageError, match=f"{path.name} holds an entry that this version does not know"):
        Journaled([path])

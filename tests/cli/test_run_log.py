"""What a run leaves in `run.log`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pabench.engines import EngineProcess
from pabench.errors import UsageError
from pabench.load import ProgressState
from pabench.terminal import run_log
from tests.cli.conftest import Run
from tests.report.synthetic import HOSTILE, Made, write_run


def test_a_run_leaves_its_course_in_words(pabench: Run, stub: EngineProcess, tmp_path: Path) -> None:
    done = pabench("run", "--url", stub.url, "--workload", "smoke", "--label", "the stub", "--out", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert lines[0].endswith("Z the stub, smoke, 4 users: planning, warming up")
    assert " of 12, " in lines[1]
    assert lines[-1].endswith("Z ended: complete; 12 ok")


def test_no_key_and_no_control_character_is_in_it(tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", []
    state = ProgressState(done=1, total=9, in_flight=2, output_tokens=30, errors=1, elapsed_s=2.0)

    def interrupted() -> None:
        with run_log.run_log(folder, f"{HOSTILE} sk-secret\x1b[31m", seen.append, secret="sk-secret") as progress:
            write_run(folder, Made("engine", requests=16))
            progress(state)
            progress(state)  # too soon for another line
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [state, state]
    text = (folder / "run.log").read_text()
    assert "***" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert "sk-secret" not in text
    assert [line.partition("Z ")[2] for line in text.splitlines()[1:]] == [
        "1 of 9, 2 in flight, 15 tok/s, 1 errors", "interrupted: complete; 16 ok"]


def test_where_nothing_ran_there_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no engine"), run_log.run_log(tmp_path / "run", "head", lambda state: None):
        raise ValueError("no engine")
    assert not (tmp_path / "run").exists()


def test_what_was_refused_leaves_the_log_of_the_run_that_is_there(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Made("engine", requests=4))
    with pytest.raises(UsageError), run_log.run_log(tmp_path / "run", "head", lambda state: None):
        raise UsageError("it is complete")
    assert not (tmp_path / "run" / "run.log").exists()

"""Run folders of earlier schema versions are read, compared and reported as they are; newer ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pabench.analysis import find_runs, finish_run, load_run, summarise
from pabench.analysis.compare import compare
from pabench.analysis.export import exported
from pabench.errors import UsageError
from pabench.load import upgrade
from pabench.load.manifest import Manifest, read_manifest
from pabench.load.records import SCHEMA_VERSION
from pabench.report import write_report
from tests.report.synthetic import Made, write_run

# Four requests to the stub, as the pabench of that version wrote them.
OLD = {version: Path(__file__).with_name(f"version_{version}") for version in (1, 2)}
PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published"


def test_every_version_has_a_step_and_a_folder() -> None:
    assert Manifest.model_fields["schema_version"].default == SCHEMA_VERSION
    assert list(upgrade._STEPS) == list(OLD) == list(range(1, SCHEMA_VERSION))


@pytest.mark.parametrize("version", OLD)
def test_an_old_folder_is_read_compared_and_reported(version: int, tmp_path: Path) -> None:
    folder = OLD[version]
    before = (folder / "manifest.json").read_bytes()
    assert json.loads(before)["schema_version"] == version
    run = load_run(folder)
    assert (run.manifest.schema_version, run.manifest.validity is None) == (SCHEMA_VERSION, version == 1)
    assert summarise(run).verified_tokens == 76
    new = shutil.copytree(folder, tmp_path / "new")
    finish_run(new)
    assert json.loads((new / "manifest.json").read_text())["schema_version"] == SCHEMA_VERSION
    (row,) = compare([folder, new], ["tpot_p50_ms"])
    assert row.ratio == 1.0
    write_report([folder], tmp_path / "report.html")
    assert f"stub, version {version}" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads(exported([folder], "json"))[0]["label"] == f"stub, version {version}"
    assert (folder / "manifest.json").read_bytes() == before


def test_published_runs_stay_readable() -> None:
    folders = find_runs(PUBLISHED)
    assert folders
    for folder in folders:
        read_manifest(folder)


def test_the_verdict_is_kept_with_its_reasons(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", Made("good", requests=16))
    bad = write_run(tmp_path / "bad", Made("bad", requests=16, status="interrupted"))
    assert finish_run(good)[1].validity.valid
    finish_run(bad)
    for folder, valid, told in ((good, True, []), (bad, False, ["the run is interrupted"])):
        kept = json.loads((folder / "manifest.json").read_text())["validity"]
        assert kept == {"valid": valid, "reasons": told}


@pytest.mark.parametrize(("manifest", "told"), [
    ({"schema_version": 4}, "it is of schema version 4, and pabench 0.1.0 reads versions up to 3"),
    ({"schema_version": "1"}, "no schema_version"), ({"schema_version": 0}, "no schema_version"),
    ({}, "no schema_version"), ([1], "no schema_version"), ({"schema_version": 1}, "validation errors"),
])
def test_what_cannot_be_read_says_why(manifest: object, told: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=told):
        read_manifest(tmp_path)

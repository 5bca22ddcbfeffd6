"""Like is compared with like: the headline over loads that both ran, and a word where labels or loads are mixed."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from pabench.load.arrivals import Arrivals, ClosedArrivals, ConstantArrivals, PoissonArrivals
from pabench.load.manifest import ClientHealth, read_manifest
from pabench.report import write_report
from pabench.report.groups import Group, sort_engines, sort_groups
from pabench.report.headline import Tile, sentences, tiles
from pabench.report.sources import read_sources
from pabench.report.view import make_page
from tests.report.synthetic import HOSTILE, Made, write_run


def groups_of(folder: Path) -> tuple[Group, ...]:
    sources = read_sources([folder])
    return sort_groups(sort_engines(sources.runs, sources.suites))


def throughput(group: Group) -> Tile:
    return {tile.title: tile for tile in tiles(group)}["Throughput"]


def cautions(folder: Path) -> tuple[str, ...]:
    return make_page(read_sources([folder])).cautions


def change_workload(folder: Path, **changes: object) -> None:
    """The manifest of a run as it would be of another workload under the same name."""
    manifest = read_manifest(folder)
    manifest.model_copy(update={"workload": manifest.workload.model_copy(update=changes)}).write(folder)


def test_a_peak_is_over_the_loads_that_both_ran(tmp_path: Path) -> None:
    for users in (2, 8):
        write_run(tmp_path / f"a{users}", Made("a", users=users))
    for users in (2, 8, 32):
        write_run(tmp_path / f"b{users}", Made("b", users=users))
    (group,) = groups_of(tmp_path)
    tile = throughput(group)
    assert (tile.factor, tile.scope) == ("≈ 1×", "best over 2 users and 8 users")
    assert tile.bars[0].text == tile.bars[1].text


def test_no_load_in_common_is_no_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a", users=2))
    write_run(tmp_path / "b", Made("b", users=32))
    (group,) = groups_of(tmp_path)
    assert not tiles(group)
    assert make_page(read_sources([tmp_path])).groups[0].nothing == "no load was carried by all engines."


def test_repeats_count_by_their_median(tmp_path: Path) -> None:
    for number, slower in enumerate((1.0, 2.0, 3.0)):
        write_run(tmp_path / f"a{number}", Made("a", slower=slower))
    write_run(tmp_path / "b", Made("b", slower=2.0))
    (group,) = groups_of(tmp_path)
    runs = [run.summary for run in group.engines[0].runs]
    assert median(run.throughput_tokens_per_s for run in runs) == runs[1].throughput_tokens_per_s
    assert throughput(group).factor == "≈ 1×"
    assert any("within 3 % of each other in p99 time to first token" in text for text in sentences(tiles(group)))


@pytest.mark.parametrize(("one", "other", "shapes"), [
    (ConstantArrivals(kind="constant", rate_per_s=4.0), PoissonArrivals(kind="poisson", rate_per_s=4.0),
     ["open loop, constant", "open loop, Poisson"]),
    (ClosedArrivals(kind="closed", users=8), ClosedArrivals(kind="closed", users=8, think_s=2.0),
     ["closed loop", "closed loop, 2 s between"]),
])
def test_another_way_of_arriving_is_another_group(
    tmp_path: Path, one: Arrivals, other: Arrivals, shapes: list[str]
) -> None:
    for name, arrivals in (("a", one), ("b", other)):
        change_workload(write_run(tmp_path / name, Made(name)), arrivals=arrivals)
    groups = groups_of(tmp_path)
    assert [group.shape for group in groups] == shapes
    titles = [view.title for view in make_page(read_sources([tmp_path])).groups]
    assert titles == [f"probe-rings ({shape})" for shape in shapes]


def test_loads_of_one_name_that_differ_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("a"))
    change_workload(write_run(tmp_path / "b", Made("b")), cache="cold")
    (told,) = cautions(tmp_path)
    assert "'probe-rings, 8 users' is not the same in all runs" in told


@pytest.mark.parametrize(("other", "what"), [
    (Made("openai", version="0.2.0"), "version 0.1.0 / 0.2.0"),
    (Made("openai", reserve_tokens=512),
     "KV cache contiguous, blocks of 16 / paged, blocks of 16"),
])
def test_a_label_that_covers_several_engines_is_told(tmp_path: Path, other: Made, what: str) -> None:
    write_run(tmp_path / "a", Made("openai"))
    write_run(tmp_path / "b", other)
    (told,) = cautions(tmp_path)
    assert f"the label 'openai' covers runs of more than one engine ({what})" in told
    assert "--label" in told
    write_report([tmp_path], tmp_path / "report.html")
    assert "Compare with care:</strong> the label" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_is_alike_needs_no_caution(results: Path) -> None:
    assert cautions(results) == ()


def test_a_hostile_version_is_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "a", Made("openai"))
    write_run(tmp_path / "b", Made("openai", version=HOSTILE))
    write_report([tmp_path], tmp_path / "report.html")
    assert "<img src=x" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_requests_that_differ_in_form_alone_are_alike_and_others_are_not(tmp_path: Path) -> None:
    """An engine may be sent text where another takes token ids: another digest, the same lengths."""
    write_run(tmp_path / "a", Made("a", digest="ids"))
    write_run(tmp_path / "b", Made("b", digest="text"))
    assert cautions(tmp_path) == ()
    write_run(tmp_path / "c", Made("c", seed=8))
    manifest = read_manifest(tmp_path / "c")
    manifest.model_copy(update={"seed": 7}).write(tmp_path / "c")
    (caution,) = cautions(tmp_path)
    assert "with seed 7 sent different requests" in caution


@pytest.mark.parametrize(("blocks", "told"), [(250, ""), (160, "(pools of 2560 to 4096 tokens)")])
def test_a_few_blocks_more_or_less_are_one_engine(tmp_path: Path, blocks: int, told: str) -> None:
    """An engine that measures the memory that it finds has another number at each start."""
    for name in ("a", "b"):
        write_run(tmp_path / name, Made("openai"))
    manifest = read_manifest(tmp_path / "b")
    assert manifest.engine.kv is not None
    manifest.engine.kv.num_blocks = blocks
    manifest.write(tmp_path / "b")
    found = " ".join(cautions(tmp_path)).replace("\N{NARROW NO-BREAK SPACE}", "").replace("\N{NO-BREAK SPACE}", "")
    assert found == "" if not told else told in found


@pytest.mark.parametrize(("changes", "told"), [
    ({"git_commit": "fbda4f00fb7c"},
     "different versions of pabench (pabench 0.1.0, commit 0123abc; pabench 0.1.0, commit fbda4f00fb7c)"),
    ({"git_commit": "0123abc-dirty"}, "commit 0123abc-dirty"),
    ({"versions": {"pabench": "0.2.0"}}, "pabench 0.2.0, commit 0123abc"),
    ({"client": ClientHealth(kernel_stamps=True)}, "arrivals are the kernel's in some runs (as of b)"),
])
def test_engines_that_another_client_measured_are_told(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    write_run(tmp_path / "a", Made("a"))
    folder = write_run(tmp_path / "b", Made("b"))
    read_manifest(folder).model_copy(update=changes).write(folder)
    (found,) = cautions(tmp_path)
    assert told in found

"""A load carried by the machines of a Ray cluster: two nodes' processes, on this one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pabench.analysis import load_run
from pabench.errors import UsageError
from pabench.load import Manifest, Placement, ProgressState, run_loop, run_workload
from pabench.load.journal import journals_in
from pabench.load.pool import split_job
from pabench.load.ray_workers import RayWorker
from pabench.load.worker import Job, Worker
from pabench.load.worker_process import WorkerDied
from pabench.stub import StubOptions, StubServer
from tests.load.support import Examined, broken_off, checked, workload
from tests.load.test_sharing import planned

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402 (behind the check that it is there)

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore")]  # Ray warns of its own future
OPEN = {"arrivals": {"kind": "poisson", "rate_per_s": 30}, "num_requests": 30, "warmup_requests": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two cores each, with object stores of the smallest size."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 << 20})
    found.add_node(num_cpus=2, object_store_memory=80 << 20)
    yield found
    ray.shutdown()
    found.shutdown()


def test_every_request_is_sent_once_and_the_records_come_back(tmp_path: Path, cluster: Cluster) -> None:
    async def go() -> Manifest:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            return await run_workload(Examined(), workload(**OPEN), tmp_path / "run", url=server.url, label="x",
                                      placement=Placement(3, cluster.address))

    manifest = run_loop(go())
    run = checked(tmp_path / "run", manifest)
    assert (manifest.status, manifest.workers, manifest.outcomes["ok"]) == ("complete", 3, 30)
    assert (run.requests["verified_tokens"] == 8).all()
    late = run.requests["sent_s"] - run.requests["intended_s"]
    assert (late > -0.005).all()  # the clocks are known to that
    assert late.median() < 0.5
    assert sum("clock of worker" in note for note in manifest.notes) == 3
    assert not journals_in(tmp_path / "run")


def test_an_interrupted_run_brings_its_records_back(tmp_path: Path, cluster: Cluster) -> None:
    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            load = workload(num_requests=2000, arrivals={"kind": "closed", "users": 4})
            await broken_off(lambda note: run_workload(Examined(), load, tmp_path / "run", url=server.url, label="x",
                                                       progress=note, placement=Placement(2, cluster.address)), 12)

    run_loop(go())
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "interrupted"
    assert run.manifest.outcomes["ok"] >= 12
    assert sum(run.manifest.outcomes.values()) == 2000


def test_a_machine_that_is_gone_ends_the_run_and_the_others_records_come_back(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RayWorker] = []

    def recorded(placement: Placement, jobs: Sequence[Job]) -> Sequence[Worker]:
        made.extend(worker for worker in genuine(placement, jobs) if isinstance(worker, RayWorker))
        return made

    def lose_one(state: ProgressState) -> None:
        if state.done >= 12:
            ray.kill(made[0]._actor)

    genuine = Placement.workers_for
    monkeypatch.setattr(Placement, "workers_for", recorded)

    async def go() -> None:
        async with StubServer(StubOptions(ttft_ms=20, itl_ms=2)) as server:
            await run_workload(Examined(), workload(num_requests=2000, arrivals={"kind": "closed", "users": 4}),
                               tmp_path / "run", url=server.url, label="x", placement=Placement(2, cluster.address),
                               progress=lose_one)

    with pytest.raises(WorkerDied, match="is gone: ActorDiedError"):
        run_loop(go())
    run = load_run(tmp_path / "run")
    assert run.manifest.status == "failed"
    assert 2 <= run.manifest.outcomes["ok"] < 1000
    assert sum(run.manifest.outcomes.values()) == 2000


def test_actors_are_spread_over_the_nodes(cluster: Cluster) -> None:
    schedule = planned(workload(num_requests=8))
    job = Job("http://127.0.0.1:1", workload(), "openai", "m", schedule.lanes(), (), Path("run"))
    workers = Placement(2, cluster.address).workers_for(split_job(job, 2))

    async def nodes() -> set[str]:
        return set(await asyncio.gather(*(worker._actor.node.remote() for worker in workers)))  # type: ignore[attr-defined]

    assert len(asyncio.run(nodes())) == 2


def test_a_cluster_that_is_not_there_is_a_clear_error() -> None:
    ray.shutdown()
    with pytest.raises(UsageError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        Placement(1, "127.0.0.1:1").workers_for([])


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'pabench\[ray\]'"):
        Placement(1, "auto").workers_for([])

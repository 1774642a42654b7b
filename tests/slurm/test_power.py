"""Power cuts: of the host that runs the batch script and of another one, while a stage grows, trains and saves."""

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

BATCH, OTHER = "batch host", "other host"


def power_cut(cluster: Cluster, run: Run, job: str, host: str, restarts: int) -> str:
    """Cuts the power of one host of a job; waits until SLURM has noticed and queued the job again."""
    node = cluster.batch_host(job) if host == BATCH else cluster.other_host(job)
    cluster.cut(node)
    cluster.until(lambda: cluster.job(job)["Restarts"] == str(restarts), f"the job restarts\n{run.log('wide')}")
    return node


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([("grows", OTHER), ("trains", BATCH)], id="ci"),
        pytest.param([("grows", BATCH), ("trains", OTHER)], id="hosts-swapped", marks=pytest.mark.long),
        pytest.param([("saves", OTHER), ("saves", BATCH)], id="in-a-save", marks=pytest.mark.long),
    ],
)
def test_power_cuts(cluster: Cluster, new_run: NewRun, undisturbed: Run, cuts: list[tuple[str, str]]) -> None:
    """The third host takes the place of the one that is gone, until that one is back."""
    run = new_run("seed")
    job = run.submit("wide")["wide"]
    for number, (moment, host) in enumerate(cuts, 1):
        if moment == "grows":
            run.grows("wide", "seed", job)
            assert not (run.folder / "wide/checkpoints").exists()
        elif moment == "saves":
            run.saves("wide", job)
        else:
            run.reaches("wide", job, run.step("wide") + 2)
        node = power_cut(cluster, run, job, host, number)
        if moment == "saves":
            assert any((run.folder / "wide/checkpoints").glob(".step-*.partial"))
        cluster.until(lambda: cluster.state(job) == "RUNNING", "the job runs again")
        assert node not in cluster.job(job)["NodeList"]
        cluster.boot(node)
    assert cluster.ended(job) == "COMPLETED", run.log("wide")
    assert cluster.job(job)["Restarts"] == str(len(cuts))
    run.same_as(undisturbed, "wide")

"""Power cuts: of the host that runs the batch script and of another one, while a stage grows, trains and saves."""

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import Run

BATCH, OTHER = "batch host", "other host"


def cut(cluster: Cluster, job: str, host: str) -> str:
    """Cuts the power of one host of a job; gives its name."""
    node = cluster.batch_host(job) if host == BATCH else cluster.other_host(job)
    cluster.cut(node)
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
            saving = list((run.folder / "wide/checkpoints").glob(".step-*.partial"))
        else:
            with run.paused_at("wide", job, run.step("wide") + 2):
                node = cut(cluster, job, host)
        if moment != "trains":  # its ranks stand still
            node = cut(cluster, job, host)
        cluster.until(
            lambda count=number: cluster.job(job)["Restarts"] == str(count), f"it restarts\n{run.log('wide')}"
        )
        if moment == "saves":
            # SLURM wakes the ranks of the host that is left: rank 0, if it is there, may end the commit that it was in.
            ended = [path.with_name(path.name[1:].removesuffix(".partial")) for path in saving if host == OTHER]
            assert any(path.exists() for path in (*saving, *ended))
        cluster.until(lambda: cluster.state(job) == "RUNNING", "the job runs again")
        assert node not in cluster.job(job)["NodeList"]
        cluster.boot(node)
    assert cluster.ended(job) == "COMPLETED", run.log("wide")
    assert cluster.job(job)["Restarts"] == str(len(cuts))
    run.same_as(undisturbed, "wide")

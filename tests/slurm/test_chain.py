"""The whole curriculum as a chain of dependent jobs, each on another layout and another number of nodes."""

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import NewRun
from tests.slurm.run import STAGES, Run


def test_the_curriculum(cluster: Cluster, new_run: NewRun, undisturbed: Run) -> None:
    run = new_run()
    jobs = run.submit()
    assert list(jobs) == list(STAGES)
    assert [cluster.job(jobs[stage])["NumNodes"].split("-")[0] for stage in STAGES] == ["1", "2", "3"]
    for stage in STAGES:
        assert cluster.ended(jobs[stage]) == "COMPLETED", run.log(stage)
        assert cluster.job(jobs[stage])["Restarts"] == "0"
        assert run.happened(stage) == ["finished"]
    run.same_as(undisturbed, *STAGES)
    assert run.submit() == {}

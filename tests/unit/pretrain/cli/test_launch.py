"""Starting the ranks of a stage on this machine: numbers, folders and exit codes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.cli import launch, submission
from pretrain.config import layouts
from pretrain.errors import UserError
from tests.unit.small import TEXT, small_curriculum

ROOT = Path(__file__).parents[4]
RANK = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
def wait(): time.sleep(100)
"""


def script(folder: Path, body: str) -> str:
    path = folder / "rank.py"
    path.write_text(RANK + body)
    return str(path)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("assert os.environ['WORLD_SIZE'] == '2'", 0, ""),
        ("sys.exit(2) if rank == 1 else wait()", 2, ""),
        ("sys.exit(7) if rank == 1 else wait()", 7, "error: rank 1 ended with exit code 7\n"),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else wait()", 137, "error: rank 1 ended with signal 9\n"),
    ],
)
def test_exit_codes(tmp_path: Path, capfd: pytest.CaptureFixture[str], body: str, code: int, said: str) -> None:
    assert launch.launch(2, [script(tmp_path, body)]) == code
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_and_waits_for_it(tmp_path: Path, number: signal.Signals) -> None:
    body = f"""
def stop(number, frame):
    open(f"{tmp_path}/stopped-{{rank}}", "w").close()
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
os.write(1, b"ready\\n")
wait()
"""
    program = f"from pretrain.cli.launch import launch; raise SystemExit(launch(2, [{script(tmp_path, body)!r}]))"
    how = dict(cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", program], **how)
    assert process.stdout is not None
    with process, process.stdout:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.wait(timeout=120) == 0
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}


def test_one_line_for_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curriculum = small_curriculum(tmp_path)
    assert submission.main([str(curriculum.path)]) == 0
    assert capsys.readouterr().out == "seed\tnew\t2\t1\truns/small/seed\nwide\tnew\t2\t1\truns/small/wide\n"


def test_what_has_happened_to_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curriculum = small_curriculum(tmp_path)
    seed = curriculum.stages[0]
    assert submission.state_of(curriculum, seed) == "new"
    (tmp_path / "runs/small/seed/checkpoints/step-00000010").mkdir(parents=True)
    assert submission.state_of(curriculum, seed) == "started"
    (tmp_path / "runs/small/seed/DONE").write_text("{}")
    assert submission.state_of(curriculum, seed) == "done"


def test_an_absent_dp_fills_the_gpus(tmp_path: Path) -> None:
    (tmp_path / "free.yaml").write_text(TEXT.replace("parallel: {tp: 2, dp: 1}", "parallel: {tp: 2}"))
    wide = submission.config.load(tmp_path / "free.yaml").stages[1]
    assert [layouts.ranks_of(wide, gpus) for gpus in (0, 1, 2, 8, 9)] == [2, 2, 2, 8, 8]


@pytest.fixture
def free(tmp_path: Path) -> submission.Curriculum:
    """The small curriculum; its second stage of any number of ranks."""
    (tmp_path / "free.yaml").write_text(TEXT.replace("parallel: {tp: 2, dp: 1}", "parallel: {tp: 2}"))
    return submission.config.load(tmp_path / "free.yaml")


def test_an_allocation_that_does_not_fit_is_refused_with_what_would(
    free: submission.Curriculum, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = free.stages[1]
    with pytest.raises(UserError) as refused:
        submission.check_allocation(free, wide, nodes=1, tasks=3, per_node=8)
    assert "needs a multiple of 2 ranks, and there are 3" in str(refused.value)
    line = f"sbatch --nodes 1 --ntasks-per-node 2 --gpus-per-node 2 slurm/stage.sh {free.path} wide"
    assert str(refused.value).splitlines()[-1] == line
    wide = free.override(wide, ["--parallel.dp", "8"])
    monkeypatch.setenv("CAMBIUM_GPUS", "0")
    with pytest.raises(UserError, match="--nodes 2 --ntasks-per-node 8 slurm/stage"):
        submission.check_allocation(free, wide, nodes=1, tasks=8, per_node=8)
    with pytest.raises(UserError, match="global_batch") as refused:  # 3 data-parallel ranks: no allocation is advised
        submission.check_allocation(free, free.stages[1], nodes=1, tasks=6, per_node=8)
    assert "sbatch" not in str(refused.value)


def test_nodes_that_a_stage_fills(free: submission.Curriculum) -> None:
    seed, wide = free.stages
    assert [submission.nodes_of(free, seed, per_node) for per_node in (1, 2, 8)] == [2, 1, 1]
    assert [submission.nodes_of(free, wide, per_node) for per_node in (1, 2, 8)] == [2, 1, 1]
    uneven = free.override(wide, ["--parallel.dp", "6", "--train.global_batch", "12"])
    with pytest.raises(UserError) as refused:
        submission.nodes_of(free, uneven, 8)
    assert "its 12 ranks (parallel.tp x pp x dp) would fill 1.50 nodes of 8" in str(refused.value)
    line = f"CAMBIUM_RANKS_PER_NODE=6 bash slurm/curriculum.sh {free.path}"
    assert str(refused.value).splitlines()[-1] == line
    assert submission.nodes_of(free, uneven, 6) == 2


def test_everything_that_a_submission_lacks_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here each stage needs 10 ranks of nodes of 4, and the corpus is missing."""
    path = tmp_path / "bad.yaml"
    path.write_text(TEXT.replace("dp: 2}", "dp: 10}").replace("dp: 1}", "dp: 4}").replace("batch: 16", "batch: 40"))
    assert submission.main([str(path), "--ranks-per-node", "4"]) == 2
    said = capsys.readouterr().err
    assert "seed: its 10 ranks" in said
    assert "data/none" in said


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["slurm/stage.sh", "{path}", "wid"], "no stage is named 'wid', did you mean 'wide'"),
        (["slurm/stage.sh", "{path}", "wide", "--train.lr", "-1"], "train.lr: should be greater than 0"),
        (["slurm/stage.sh", "absent.yaml", "wide"], "absent.yaml: no such file"),
        (["slurm/curriculum.sh", "absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_the_scripts_end_at_once_with_one_message(tmp_path: Path, command: list[str], expected: str) -> None:
    path = str(small_curriculum(tmp_path).path)
    words = ["bash", str(ROOT / command[0]), *(word.format(path=path) for word in command[1:])]
    environment = {**os.environ, "PYTHON": sys.executable}
    options = dict(capture_output=True, text=True, check=False, timeout=120)
    done = subprocess.run(words, cwd=tmp_path, env=environment, **options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["stage.sh", "curriculum.sh"])
def test_the_scripts_explain_themselves(name: str) -> None:
    done = subprocess.run(["bash", str(ROOT / "slurm" / name)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"bash slurm/{name} " in done.stderr
    assert " CONFIG" in done.stderr

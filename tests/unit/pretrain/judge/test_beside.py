"""Who evaluates a checkpoint: a job where there is sbatch, and how it is asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import config
from pretrain.judge.beside import Beside
from tests.unit.small import small_curriculum

SBATCH = """#!/usr/bin/env bash
{ printf '%s\\n' "$@"; env | grep -E '^(SLURM_|WORLD_SIZE)' || true; } >>"$0.said"
"""


def test_one_job_for_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, without what this job says of itself; and a cluster that refuses does not matter."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "WORLD_SIZE": "16", "CAMBIUM_GPUS": "1"}.items():
        monkeypatch.setenv(name, value)
    stage = replace(small_curriculum(tmp_path).stages[0], eval=config.Eval(("some_task",), interval=10))
    folder = tmp_path / "run" / stage.name
    beside = Beside(folder, stage, (), 0)
    for step in (5, 10, 10, 20):  # the first one is not due, and the third call brings nothing new
        (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True, exist_ok=True)
        beside.begin()
        if beside._process:
            beside._process.wait()
    said = sbatch.with_name("sbatch.said").read_text()
    assert said.count(f"slurm/evaluate.sh\n{folder}\n") == 2
    assert f"--job-name=cambium-run-{stage.name}-eval\n--dependency=singleton\n" in said
    assert "--gpus-per-node=1\n" in said
    assert "SLURM_" not in said
    assert "WORLD_SIZE" not in said
    assert beside.spared() == {10, 20}
    assert beside.news() == []
    monkeypatch.setattr("pretrain.judge.beside.subprocess.Popen", _refused)
    (folder / "checkpoints/step-00000030").mkdir()
    beside.begin()


def _refused(*arguments: object, **options: object) -> None:
    raise OSError("no more processes")

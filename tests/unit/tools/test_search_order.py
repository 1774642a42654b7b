"""tools/search_order.py: from a curriculum to a folder, killed on the way or not, and what it refuses."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.data.corpus.corpus import Corpus
from pretrain.search import training
from pretrain.search.training import Training
from tests.faults import killing
from tools.search_order import main


@pytest.fixture
def config(corpus: Corpus, tmp_path: Path) -> str:
    model = {"family": "gpt2", "vocab": 640, "hidden": 16, "layers": 3, "heads": 2, "ffn": 64}
    train = {"epochs": 0.02, "warmup": 0.1, "seq_len": 16, "global_batch": 4, "lr": 1e-2, "eval_bytes": 512}
    document = {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {"corpus": str(corpus.path), "window": 16},
        "stages": [{"name": "only", "model": model, "train": train}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    return str(tmp_path / "run.yaml")


NEVER = 1_000_000


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_killed_or_not_it_writes_the_same_bytes(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in a search, in an order, and between two; once with a state that a kill has left half written."""
    monkeypatch.setattr(training, "SAVED", 4)
    command = [config, "--steps", "12", "--seeds", "2", "--draws", "1", "--rate", "0.3", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    whole = files(tmp_path / "whole")
    names = {"order.json", "order.yaml", "table.md", "table.txt", "probabilities-1.png", "probabilities-2.png"}
    assert set(whole) == names
    found = json.loads(whole["order.json"])
    assert [row["name"] for row in found["orders"]] == [
        *("interleaved", "sandwich(1)", "PAR(5)", "found-1", "found-2", "random")
    ]
    assert found["orders"][0]["order"] == "sfsfsf"
    assert yaml.safe_load(whole["order.yaml"]) == {"order": found["order"]}
    assert f"order: {found['order']}" in out
    best = min(row["loss"] for row in found["orders"] if row["name"].startswith("found"))
    assert found["order"] in [row["order"] for row in found["orders"] if row["loss"] == best]
    interleaved = found["orders"][0]["parameters"]
    smallest = 4 * 16**2 + 6 * 16  # of attention, with its biases and its norm
    assert all(abs(row["parameters"] - interleaved) <= 2 * smallest for row in found["orders"])

    step = Training._gradients
    for kills, last in enumerate((3, 10, 25, NEVER)):
        done = 0

        def counted(*given: Any, last: int = last) -> float:
            nonlocal done
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return step(*given)

        with monkeypatch.context() as patched:
            patched.setattr(Training, "_gradients", counted)
            said, _ = killing.run(lambda say: say(str(main([*command, str(tmp_path / "killed")]))))
        assert said == ([] if last != NEVER else ["0"])
        if kills == 1:
            (tmp_path / "killed" / "..search-0.progress.partial").write_bytes(b"half")
    (tmp_path / "killed" / "..search-0.progress.partial").unlink(missing_ok=True)
    assert files(tmp_path / "killed") == whole
    capsys.readouterr()
    assert main([*command, str(tmp_path / "killed"), "--json"]) == 0  # nothing is left to do
    assert json.loads(capsys.readouterr().out) == found
    assert main([config, "--out", str(tmp_path / "killed")]) == 2
    assert "holds another search" in capsys.readouterr().err


def test_what_it_refuses(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*more: str) -> str:
        assert main([config, "--out", str(tmp_path / "out"), *more]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    assert "--rate 0: choose a number above 0" in error("--rate", "0")
    assert "--rate nan" in error("--rate", "nan")
    assert "its stages are only" in error("--stage", "onyl")
    assert "--device cuda:99" in error("--device", "cuda:99")
    assert "--device none" in error("--device", "none")
    with pytest.raises(SystemExit, match="2"):
        main([config, "--steps", "0"])
    assert "--steps: '0' is no whole number from 1 on" in capsys.readouterr().err
    document = yaml.safe_load(Path(config).read_text())
    document["stages"][0]["train"]["lr"] = 1e30
    Path(config).write_text(yaml.safe_dump(document))
    assert "take a smaller train.lr" in error("--steps", "20")

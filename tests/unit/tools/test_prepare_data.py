"""The command line: what it prints, and its exit codes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus.corpus import Corpus
from pretrain.families.bert.stream import BertCorpus
from tools.prepare_data import main


def test_run_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corpus, its description as text and as JSON; the second run says that it is there."""
    (tmp_path / "x.txt").write_text(
        "\n\n".join(f"It was the {n}th of the best times, and the worst." for n in range(200))
    )
    command = [str(tmp_path / "x.txt"), "--output", str(tmp_path / "out"), "--vocab-size", "300"]
    assert main(command) == 0
    assert "200 documents" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Corpus.open(tmp_path / "out").description
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out


def test_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2, nothing left under the output's name."""
    (tmp_path / "x.txt").write_text("")
    assert main([str(tmp_path / "x.txt"), "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For BERT: documents of sentences, with a trained WordPiece vocabulary that keeps capitals if asked."""
    (tmp_path / "x.txt").write_text("\n\n".join(f"It was the {n}th time. The Best of times." for n in range(50)))
    command = [str(tmp_path / "x.txt"), "--wordpiece", "--cased", "--output", str(tmp_path / "out")]
    assert main([*command, "--vocab-size", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 50
    corpus = BertCorpus.open(tmp_path / "out")
    assert len(corpus.tokens.lengths) == 100
    assert corpus.tokenizer.decode(corpus.read(*corpus.tokens.document_ranges(np.array([7])))).startswith(
        "It was the 7"
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--cased"], "--cased is only for WordPiece"),
        (["--wordpiece", "--tokenizer", "vocab.txt", "--vocab-size", "9"], "--vocab-size is only"),
        (["--text-key", "body"], "--text-key is only for"),
        *((["--vocab-size", size], f"--vocab-size {size}: a tokenizer has 1") for size in ("0", "-1", "99999999999")),
        (["--wordpiece", "--vocab-size", "0"], "--vocab-size 0: a tokenizer has 1"),
        (["--wordpiece", "--vocab-size", "3"], "alone are .* pieces: give a --vocab-size"),
        (["--workers", "99999"], "--workers 99999: give 1 to"),
    ],
)
def test_options_without_effect_or_sense(
    given: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("some text, and more of it")
    assert main([str(tmp_path / "x.txt"), "--output", str(tmp_path / "out"), *given]) == 2
    told = capsys.readouterr().err
    assert re.search(why, told)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.txt").write_text("some text, and more of it")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "x.txt"), "--output", str(tmp_path / "out"), "--workers", "0"])
    assert "--workers: '0' is no whole number from 1 on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

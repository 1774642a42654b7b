"""What is refused before a stage starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import config
from pretrain.data.corpus.encoders import SentencePieceEncoder
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.sources import Source
from pretrain.errors import UserError
from pretrain.event import plan
from tests.unit.tools.runs import Run


def test_text_that_its_parent_did_not_have(run: Run, tmp_path: Path) -> None:
    """Found before the parent is trained: where the next stage goes on would mean nothing there."""
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"the {n}th line"}) + "\n" for n in range(200)))
    tokenizer = SentencePieceEncoder(run.corpus.path / "tokenizer")
    prepare(Source((tmp_path / "text.jsonl",)), tmp_path / "other", tokenizer)

    def check(**data: Any) -> None:
        document = yaml.safe_load(Path(run.config).read_text())
        document["output"] = str(tmp_path / "runs")  # where nothing is done yet
        document["stages"][1]["data"] = {**document["data"], **data}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(document))
        curriculum = config.load(path)
        plan.check(curriculum, curriculum.stage("large"), 1, ahead=["small"])

    check()
    for data in ({"corpus": str(tmp_path / "other")}, {"validation_fraction": 0.3}):
        with pytest.raises(UserError, match="that corpus, the seed or the validation fraction has changed"):
            check(**data)

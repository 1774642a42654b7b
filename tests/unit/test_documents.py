"""Documents name what is there: every path, module, command line, make target, link and configuration key exists."""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from pretrain import config
from pretrain.config.curriculum import SECTIONS
from pretrain.config.keys import Stage
from tests.unit import documents
from tests.unit.documents import ROOT, Document

FOLDERS = ("docs", "growth", "pretrain", "tools", "configs", "slurm", "tests")
MARKDOWN = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
COMMENTED = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("slurm/*"), ROOT / "Makefile", ROOT / ".ci/run"])
DOCUMENTS = [*map(documents.markdown, MARKDOWN), *map(documents.comments, COMMENTED)]
WRITTEN = [document for document in DOCUMENTS if document.path.suffix == ".md"]
OTHERS = (".weight", ".bias", ".py", ".jsonl")
"""Endings of what looks like a key and is a tensor or a file."""


@pytest.fixture(params=DOCUMENTS, ids=lambda document: document.name)
def document(request: pytest.FixtureRequest) -> Document:
    found: Document = request.param
    return found


def test_there_are_documents() -> None:
    assert {"README.md", "docs/gpu.md", "growth/README.md", "configs/demo.yaml"} <= {d.name for d in DOCUMENTS}


def test_every_path_exists(document: Document) -> None:
    assert not [path for path in documents.paths(document) if not documents.there(path, document)]


def test_every_link_leads_somewhere(document: Document) -> None:
    links = [link for link in documents.LINK.findall(document.text) if "://" not in link]
    assert not [link for link in links if documents.broken(link, document)]


def dotted(document: Document) -> list[str]:
    """The names of modules, and of what they define."""
    found = [name for code in document.code for name in documents.DOTTED.findall(code)]
    return [name for name in found if name.rpartition(".")[2] not in ("yaml", "md", "py", "sh")]


def test_every_dotted_name_is_defined(document: Document) -> None:
    assert not [name for name in dotted(document) if not documents.defined(name)]


def test_a_name_that_is_said_to_be_in_a_file_is_there(document: Document) -> None:
    found = documents.DEFINED.findall(document.text)
    assert not [(name, file) for name, file in found if not re.search(rf"\b{name}\b", (ROOT / file).read_text())]


def test_every_command_line_is_understood(document: Document) -> None:
    for command in documents.commands(document):
        assert command.program.is_file(), command
        keys = [option[2:] for option in command.options if "." in option]
        options = [option for option in command.options if "." not in option]
        assert not [key for key in keys if not is_key(key)], command
        assert set(options) <= documents.accepted(command.program), command
        given = re.findall(r"configs/[\w/]+\.yaml", command.rest)
        for stage in re.findall(r"--stage ([a-z]\w*)", command.rest):
            assert stage in [one.name for one in config.load(ROOT / given[0]).stages], command


def test_every_make_target_is_one(document: Document) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = document.code if document.path.suffix == ".md" else document.spans
    assert {name for one in code for name in documents.MAKE.findall(one)} <= targets


def test_every_environment_variable_is_read(document: Document) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "slurm").glob("*.sh"))
    assert not [name for name in re.findall(r"CAMBIUM_\w+", document.text) if name not in sources]


def is_key(dotted: str) -> bool:
    """Whether this is a key of a stage, such as train.plateau.window."""
    section: Any = Stage
    for part in dotted.split("."):
        hints = get_type_hints(section) if dataclasses.is_dataclass(section) else {}
        if part not in hints:
            return False
        section = hints[part]
    return True


@pytest.mark.parametrize("document", WRITTEN, ids=lambda document: document.name)
def test_every_key_exists(document: Document) -> None:
    pattern = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.\w+)+")
    for span in document.spans:
        if (found := re.match(rf"({pattern.pattern})(?:: .*|/.*)?$", span)) and not found[1].endswith(OTHERS):
            assert is_key(found[1]), span


def unknown(section: Any, given: Mapping[str, Any]) -> list[str]:
    """The keys of a section that it does not have."""
    hints = get_type_hints(section)
    found = [key for key in given if key not in hints]
    for key in given:
        if dataclasses.is_dataclass(hints.get(key)) and isinstance(given[key], Mapping):
            found += [f"{key}.{inner}" for inner in unknown(hints[key], given[key])]
    return found


@pytest.mark.parametrize("document", WRITTEN, ids=lambda document: document.name)
def test_every_piece_of_a_configuration_is_one(document: Document, tmp_path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", document.text, re.DOTALL | re.MULTILINE):
        if "stages" in (given := yaml.safe_load(block)):
            path = tmp_path / "given.yaml"
            path.write_text(block)
            assert config.load(path).stages
        else:
            assert not unknown(Stage, given), block


def test_the_pictures_are_what_is_drawn() -> None:
    pictures = runpy.run_path(str(ROOT / "docs/pictures.py"))["PICTURES"]
    assert pictures
    for name, draw in pictures.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == draw(), "python docs/pictures.py makes it again"


def test_every_path_and_module_in_a_docstring_exists() -> None:
    for path in (path for folder in ("growth", "pretrain", "tools") for path in (ROOT / folder).rglob("*.py")):
        document = documents.docstrings(path)
        assert not [found for found in documents.paths(document) if not documents.there(found, document)], path
        assert not [name for name in dotted(document) if not documents.defined(name)], path


def planted(text: str, tmp_path: Path) -> Document:
    path = tmp_path / "page.md"
    path.write_text(text)
    return documents.markdown(path)


@pytest.mark.parametrize(
    ("test", "text"),
    [
        (test_every_path_exists, "see `pretrain/stage/loop.py`"),
        (test_every_path_exists, "see `loop.py`"),
        (test_every_path_exists, "    bash slurm/everything.sh\n"),
        (test_every_path_exists, "one file each: `pretrain/families/NAME/tables.py`"),
        (test_every_link_leads_somewhere, "[see](tour.md)"),
        (test_every_link_leads_somewhere, "# A heading\n\n[see](#another)"),
        (test_every_dotted_name_is_defined, "the function `growth.plan.Plan.evaluated`"),
        (test_every_dotted_name_is_defined, "the module `pretrain.stages`"),
        (test_a_name_that_is_said_to_be_in_a_file_is_there, "`fragment_box` in `pretrain/layout/zero.py`"),
        (test_every_command_line_is_understood, "`python -m pretrain.launch CONFIG`"),
        (test_every_command_line_is_understood, "    python tools/plan.py CONFIG --suggestions\n"),
        (test_every_command_line_is_understood, "    python -m pretrain CONFIG --stage NAME --train.rate 1\n"),
        (test_every_command_line_is_understood, "`python -m pretrain configs/demo.yaml --stage widest`"),
        (test_every_make_target_is_one, "`make tests`"),
        (test_every_key_exists, "`train.rate`"),
        (test_every_environment_variable_is_read, "set `CAMBIUM_NODES`"),
    ],
)
def test_what_does_not_exist_is_seen(test: Callable[[Document], None], text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        test(planted(text, tmp_path))


def test_a_key_in_a_piece_of_a_configuration_that_does_not_exist_is_seen(tmp_path: Path) -> None:
    document = planted("```yaml\ntrain: {rate: 1}\n```\n", tmp_path)
    with pytest.raises(AssertionError):
        test_every_piece_of_a_configuration_is_one(document, tmp_path)

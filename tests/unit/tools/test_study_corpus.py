"""The text of the study out of small copies of the files that its packages have."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from tools.study_corpus import main

NOUNS = """  1 the licence
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
00001930 03 n 02 physical_entity 0 matter 1 000 | an entity that has physical existence; "it is"
"""


def strings(lines: list[str]) -> bytes:
    """As R serializes a vector of strings."""
    head = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    items = (struct.pack(">ii", 0x40009, len(line.encode())) + line.encode() for line in lines)
    return head + struct.pack(">ii", 16, len(lines)) + b"".join(items)


def unpack(root: Path) -> None:
    data = [["EMMA", "", "CHAPTER I", "Emma Woodhouse, handsome", "CHAPTER II", "Mr. Weston"], ["PERSUASION", "", "é"]]
    packed = b"1234" + b"".join(zlib.compress(strings(lines)) + b"\0\0\0\7" for lines in data)
    for name, content in {
        "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb": packed,
        "usr/share/wordnet/data.noun": NOUNS.encode(),
        "usr/share/doc/python3.11/html/_sources/c-api/init.rst.txt": b"Initialization\n==============\n",
        "usr/share/perl/5.36.0/pod/perl.pod": b"=head1 NAME\n",
    }.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(content)
    (root / "usr/share/doc/python3").symlink_to("python3.11")


def test_all_of_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpack(tmp_path)
    out = tmp_path / "study.jsonl"
    assert main([str(out), "--root", str(tmp_path)]) == 0
    emma, first, second, persuasion, nouns, python, perl = map(json.loads, out.read_text().splitlines())
    assert [d["text"] for d in (emma, persuasion)] == ["EMMA", "PERSUASION\n\né"]
    assert first == {"title": "Emma, 1", "text": "CHAPTER I\nEmma Woodhouse, handsome"}
    assert second["text"] == "CHAPTER II\nMr. Weston"
    assert nouns["text"].splitlines() == [
        "entity: that which is perceived",
        'physical entity, matter: an entity that has physical existence; "it is"',
    ]
    assert (python["title"], perl["text"]) == ("init.rst.txt", "=head1 NAME")
    assert "wordnet-base" in capsys.readouterr().out


def test_a_package_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpack(tmp_path)
    (tmp_path / "usr/share/perl/5.36.0/pod/perl.pod").unlink()
    assert main([str(tmp_path / "out.jsonl"), "--root", str(tmp_path)]) == 2
    assert "nothing there of perl-doc: apt-get install" in capsys.readouterr().err

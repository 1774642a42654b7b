"""Writes the text of configs/study/micro.yaml as JSON lines: prose of four kinds, 35 MB, out of Debian packages.

Six novels of Jane Austen, the words of WordNet with what they mean, and the manuals of Python and Perl. They are looked
for where Debian puts them, under --root. The fifth kind, the King James Bible, is tools/demo_corpus.py's.

examples:
  python tools/study_corpus.py data/study.jsonl                 after apt-get install of the packages that it names
  python tools/study_corpus.py data/study.jsonl --root debs     after dpkg-deb -x PACKAGE.deb debs, for each of them
  python tools/study_corpus.py data/manuals.jsonl --package python3-doc --package perl-doc
"""

import argparse
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.report.files import writing

Document = dict[str, str]
TOGETHER = 100  # so many entries of WordNet, which are of one field, are a document


def novels(file: Path) -> Iterator[Document]:
    """The chapters of the novels in an R package's data: zlib streams, each a vector of lines in R's own format."""
    data = file.read_bytes()
    place = data.find(b"\x78\x9c")
    while place >= 0:
        stream = zlib.decompressobj()
        lines = _strings(stream.decompress(data[place:]))
        title = lines[0].title()
        for number, chapter in enumerate(re.split(r"(?m)^(?=CHAPTER|Chapter)", "\n".join(lines))):
            yield {"title": f"{title}, {number}", "text": chapter.strip()}
        place = data.find(b"\x78\x9c", len(data) - len(stream.unused_data))


def _strings(data: bytes) -> list[str]:
    """A vector of strings that R has serialized as XDR, version 3: a header, the kind 16, how many, and each with its
    flags and its length."""
    (encoding,) = struct.unpack_from(">i", data, 14)
    kind, count = struct.unpack_from(">ii", data, 18 + encoding)
    place, found = 26 + encoding, list[str]()
    assert kind & 0xFF == 16, "no vector of strings"
    for _ in range(count):
        (length,) = struct.unpack_from(">i", data, place + 4)
        found.append(data[place + 8 : place + 8 + length].decode())
        place += 8 + length
    return found


def meanings(file: Path) -> Iterator[Document]:
    """Words and what they mean, out of a data file of WordNet: `TOGETHER` entries a document."""
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        words = [parts[4 + 2 * n].replace("_", " ") for n in range(int(parts[3], 16))]
        entries.append(f"{', '.join(words)}: {gloss.strip()}")
    for begin in range(0, len(entries), TOGETHER):
        yield {"title": f"{file.name}, {begin}", "text": "\n".join(entries[begin : begin + TOGETHER])}


def manual(file: Path) -> Iterator[Document]:
    """A page of a manual, as it is."""
    yield {"title": file.name, "text": file.read_text(encoding="utf-8", errors="replace").strip()}


SOURCES: dict[str, tuple[str, Callable[[Path], Iterator[Document]]]] = {
    "r-cran-janeaustenr": ("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb", novels),
    "wordnet-base": ("usr/share/wordnet/data.*", meanings),
    "python3-doc": ("usr/share/doc/python3*/html/_sources/**/*.txt", manual),
    "perl-doc": ("usr/share/perl/*/pod/*.pod", manual),
}
"""Of each Debian package where its files are, and how they are read."""


def documents(root: Path, packages: Sequence[str] = tuple(SOURCES)) -> Iterator[tuple[str, Document]]:
    """All documents of these packages, each with its own. Raises UserError that names what is not there."""
    files = {package: sorted({f.resolve() for f in root.glob(SOURCES[package][0])}) for package in packages}
    if absent := [package for package, found in files.items() if not found]:
        raise UserError(
            f"{root}: nothing there of {', '.join(absent)}: apt-get install them, or unpack them with dpkg-deb -x and "
            "give the folder as --root"
        )
    for package in packages:
        for file in files[package]:
            for document in SOURCES[package][1](file):
                yield package, document


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="JSON lines file to write (replaced if it exists)")
    parser.add_argument(
        "--package",
        action="append",
        choices=list(SOURCES),
        help="only the text of this one (may be repeated; default: all)",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are (default: /)")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError where a package is not there."""
    sizes: dict[str, int] = {}
    with writing(options.output), open(options.output, "w", encoding="utf-8") as out:
        for package, document in documents(options.root, options.package or list(SOURCES)):
            if document["text"]:
                print(json.dumps(document, ensure_ascii=False), file=out)
                sizes[package] = sizes.get(package, 0) + len(document["text"].encode())
    parts = ", ".join(f"{package} {size:,}" for package, size in sizes.items())
    return command.Answer(f"{options.output}: {sum(sizes.values()):,} bytes of text ({parts})", {"bytes": sizes})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

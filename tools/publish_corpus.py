"""Copies a prepared corpus to an object storage or any other URL that fsspec writes, from where stages can read it.

A stage names it as data.corpus: s3://bucket/corpus. What it reads comes a block at a time into a cache on its own disk
(the folder that CAMBIUM_CACHE names, or ~/.cache/cambium), and each block is verified. The list of blocks is written
last, so a copy that was stopped is no corpus; start it again. Storages other than files and the web need their package
of fsspec (s3://: s3fs; gs://: gcsfs).

examples:
  python tools/publish_corpus.py data/books s3://bucket/corpora/books
  python tools/publish_corpus.py data/books file:///shared/corpora/books
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.data.corpus import remote
from pretrain.data.corpus.corpus import DESCRIPTION
from pretrain.errors import UserError
from pretrain.runtime.storage import is_url


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, help="folder of a prepared corpus")
    parser.add_argument("url", metavar="URL", help="where to put it")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.data.corpus.remote does."""
    if not (options.corpus / DESCRIPTION).is_file():
        raise UserError(f"{options.corpus} is not a prepared corpus (it has no {DESCRIPTION})")
    if not is_url(options.url):
        raise UserError(f"{options.url} is no URL: write it like s3://bucket/folder or file:///folder")
    size = remote.publish(options.corpus, options.url)
    return command.Answer(f"{options.url}: {size:,} bytes of {options.corpus}", {"url": options.url, "bytes": size})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

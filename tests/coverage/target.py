"""python -m tests.coverage.target manifest|header FOLDER [libFuzzer's options]: fuzzes one reader of what others write.

FOLDER/corpus gets the documents that reached new code; it may hold some from an earlier run. Ends with 0 when nothing
but UserError came out of the reader, and otherwise with the exception and the document, FOLDER/crash-*.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import atheris

READERS = ["pretrain.runtime.documents", "pretrain.checkpoint", "pretrain.config.factor_files", "pretrain.hf", "growth"]
with atheris.instrument_imports(include=READERS, enable_loader_override=False):
    from pretrain.checkpoint.manifest import MANIFEST
    from pretrain.config import factor_files
    from tests import mutations
    from tests.unit.pretrain.checkpoint import test_fuzz as test_manifests
    from tests.unit.pretrain.config import test_factor_files as test_factors

Reader = Callable[[bytes], object]


def manifests(folder: Path) -> tuple[Reader, bytes]:
    """A reader of manifests that have the hash of what they say, and a valid one."""
    path = test_manifests.make(folder / "checkpoints" / "step-00000007")
    read = test_manifests.opened(path)
    return lambda data: read(test_manifests.signed(data, 1)), (path / MANIFEST).read_bytes()


def headers(folder: Path) -> tuple[Reader, bytes]:
    """A reader of factor files, of which the header is given, and a valid header."""
    path = folder / "f.safetensors"
    factor_files.write(path, test_factors.POLICY, {"stage": "wide"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")

    def read(header: bytes) -> None:
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        test_factors.grown(path)

    return read, data[8 : 8 + length]


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """One of ours, of what is in the document, or one of libFuzzer's, of its bytes."""
    if random.Random(seed).random() < 0.7:
        try:
            document: Any = json.loads(data)
            changed = mutations.of_json(document, seed)
        except (ValueError, RecursionError):  # it has become none, or one that is deeper than Python is
            return atheris.Mutate(data, len(data))
        return changed if len(changed) <= most else data
    return atheris.Mutate(data, len(data))


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    kind, name, *options = sys.argv[1:]
    folder, corpus = Path(name), Path(name) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    read, valid = {"manifest": manifests, "header": headers}[kind](Path(mkdtemp(dir=folder)))
    read(valid)
    (corpus / "valid").write_bytes(valid)

    def one(data: bytes) -> None:
        mutations.refused(lambda: read(data), 0)

    arguments = [sys.argv[0], str(corpus), f"-max_len={4 * len(valid)}", f"-artifact_prefix={folder}/", *options]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

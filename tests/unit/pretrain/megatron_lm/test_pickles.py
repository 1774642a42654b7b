"""Pickles that mean harm, and files that lie: each is refused in one line by its name, and nothing of it runs."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.errors import UserError
from pretrain.megatron_lm.archive import load
from pretrain.megatron_lm.known import KNOWN
from pretrain.megatron_lm.pickles import plain
from tools.import_megatron import main

RAN: list[str] = []


def ran(what: str) -> str:
    """What a pickle must not reach."""
    RAN.append(what)
    return what


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def gadgets(mark: Path) -> dict[str, Any]:
    """Objects that would make the file `mark`, or call `ran`, and the names by which they are refused."""
    touch, write = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    return {
        "posix.system": Calls(os.system, touch),
        "builtins.eval": Calls(eval, write),
        "builtins.exec": {"args": argparse.Namespace(hidden=[(1, Calls(exec, write))])},
        "builtins.getattr": {"model": Calls(getattr, Calls(getattr, "text", "upper"), "__call__")},
        "tests.unit.pretrain.megatron_lm.test_pickles.ran": {"optimizer": {"state": {0: Calls(ran, "nested")}}},
        "torch.serialization.load": Calls(torch.load, str(mark)),
        "functools.partial": {"args": Calls(__import__("functools").partial, ran, "later")},
    }


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    RAN.clear()
    return tmp_path / "ran"


NAMES = list(gadgets(Path("mark")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["common.pt", ".metadata"])
def test_a_gadget_is_refused_by_its_name_and_not_run(
    name: str, where: str, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    torch.save({}, folder / "common.pt")
    (folder / ".metadata").write_bytes(pickle.dumps({}))
    gadget = gadgets(mark)[name]
    if where == ".metadata":
        (folder / where).write_bytes(pickle.dumps(gadget))
    else:
        torch.save(gadget, folder / where)
    assert main([str(folder), str(tmp_path / "run" / "base")]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert len(said.splitlines()) == 1
    assert not RAN
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02\x82\x01.",  # a registered extension
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02]\x8c\x01xb.",  # a state for a list
        b"\x80\x02ccollections\nOrderedDict\n)R}(U\x0c__setstate__U\x01xub(Nubu.",
        b"\x80\x02K\x01K\x02\x86R.",  # a call of a number
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text that is longer than the file
        b"\x80\x02Nr\xff\xff\xff\xff" * 3,  # no end
        b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",  # a key that is a tuple in a tuple in a tuple
        b"P1\n.",
        b"",
    ],
)
def test_bytes_of_no_checkpoint_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="here: "):
        plain(data, "here", KNOWN)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The entries of a file of torch.save, changed."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


class Lies(pickle.Pickler):
    """Writes a tensor whose storage is what `pid` says."""

    def __init__(self, out: io.BytesIO, pid: Any) -> None:
        super().__init__(out, protocol=2)
        self.pid = pid

    def persistent_id(self, value: Any) -> Any:
        return self.pid if isinstance(value, torch.UntypedStorage) else None


def tensor_of(pid: Any, shape: tuple[int, ...] = (4,)) -> bytes:
    out = io.BytesIO()
    value = Calls(torch._utils._rebuild_tensor_v2, torch.UntypedStorage(0), 0, shape, (1,) * len(shape), False, {})
    Lies(out, pid).dump({"weight": value})
    return out.getvalue()


@pytest.mark.parametrize(
    ("pid", "shape", "problem"),
    [
        (("storage", torch.FloatStorage, "0", "cpu", 1 << 40), (4,), "is said to have"),
        (("storage", torch.FloatStorage, "0", "cpu", 4), (5,), "reaches beyond"),
        (("storage", torch.FloatStorage, "0", "cpu", 4), (-4,), "a tensor of shape"),
        (("storage", torch.FloatStorage, "../0", "cpu", 4), (4,), "has no storage"),
        (("storage", os.system, "0", "cpu", 4), (4,), "posix.system"),
        (("storage", "torch.FloatStorage", "0", "cpu", 4), (4,), "no storage of a tensor"),
        (("module", torch.FloatStorage, "0", "cpu", 4), (4,), "no storage of a tensor"),
        ("0", (4,), "no storage of a tensor"),
    ],
)
def test_a_persistent_id_that_lies_is_refused(pid: Any, shape: tuple[int, ...], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "common.pt"
    torch.save({"weight": torch.ones(4)}, path)
    rewritten(path, lambda entries: entries.update({"common/data.pkl": tensor_of(pid, shape)}))
    with pytest.raises(UserError, match=problem):
        load(path)


def test_a_storage_that_ends_with_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "common.pt"
    torch.save({"weight": torch.ones(100_000)}, path)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(UserError, match=r"common\.pt: "):
        load(path)


def test_older_formats_of_torch_are_refused_unread(mark: Path, tmp_path: Path) -> None:
    """The pickle of torch before 1.6, and its tar of even longer ago, in which torch.load looks for pickles."""
    old, tar = tmp_path / "old.pt", tmp_path / "tar.pt"
    torch.save(Calls(ran, "old"), old, _use_new_zipfile_serialization=False)
    with tarfile.open(tar, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            data = pickle.dumps(Calls(ran, name), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for path in (old, tar):
        with pytest.raises(UserError, match=r"since version 1\.6"):
            load(path)
    assert not RAN


def test_plain_content_comes_in_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "common.pt"
    turned = torch.arange(12.0).reshape(3, 4).T
    content = {
        "args": argparse.Namespace(lr=1e-3, params_dtype=torch.bfloat16, betas=(0.9, 0.95)),
        "weight": turned.to(torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sizes": torch.Size([2, 3]),
        "iteration": 10**12,
        "names": {"a", "b"},
        "state": b"\x00\xff",
    }
    content["parameter"].tensor_model_parallel = True
    torch.save(content, path)
    found = load(path)
    assert found["args"].fields == {"lr": 1e-3, "params_dtype": torch.bfloat16, "betas": (0.9, 0.95)}
    whole = __import__("growth").Box.whole
    assert torch.equal(found["weight"].read(whole((4, 3))), turned)
    assert torch.equal(found["parameter"].read(whole((2,))), torch.ones(2))
    assert {key: found[key] for key in ("sizes", "iteration", "names", "state")} == {
        "sizes": (2, 3),
        "iteration": 10**12,
        "names": {"a", "b"},
        "state": b"\x00\xff",
    }
    assert json.dumps(found["sizes"])

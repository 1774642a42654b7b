"""Pickles read as plain data, by a small machine of ours: nothing that a pickle names is ever imported or called.

Python's unpickler runs whatever a pickle asks for. Here the opcodes that `torch.save` writes are worked off by hand
(`pickletools` only cuts the bytes into them). A global is looked up by its name in a table of what is known; what it
stands for is a function of ours that returns plain data, or a constant. Anything else is refused by its name.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pretrain.errors import UserError
from pretrain.runtime.documents import one_line, show

SCALARS = (str, int, float, bool, bytes, type(None), torch.dtype)


@dataclass(eq=False)
class Record:
    """An object of a known class as data: the arguments that it was made with, and its attributes."""

    name: str
    args: tuple[Any, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Maker:
    """What stands for a callable or a class in a pickle: a function of ours, from its arguments to plain data."""

    make: Callable[..., Any]


class Refused(UserError):
    """A pickle that asks for what is not known, or that is damaged."""


_MARK = object()


class _Machine:
    """The stack and the memo of one pickle. known: name of a global -> a Maker, or a constant."""

    def __init__(self, where: str, known: Mapping[str, Any], storage: Callable[[Any], Any] | None) -> None:
        self.where, self.known, self.storage = where, known, storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, value, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSHED:
                self.stack.append(value)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif step := getattr(self, f"_{name.lower()}", None):
                step(value)
            elif name not in ("PROTO", "FRAME"):
                raise Refused(f"{self.where}: the opcode {name} is not of a checkpoint's pickle: it is not loaded")
        raise ValueError("it does not end")

    def _marked(self) -> list[Any]:
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _put(self, at: int) -> None:
        self.memo[int(at)] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, at: int) -> None:
        self.stack.append(self.memo[int(at)])

    _binget = _long_binget = _get

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _expect(self.stack[-1], list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._marked()
        _expect(self.stack[-1], list).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _expect(self.stack[-1], dict)[_key(key)] = value

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        target = _expect(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    def _additems(self, _: Any) -> None:
        values = self._marked()
        _expect(self.stack[-1], set).update(map(_key, values))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(_key, self._marked())))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _dict(self, _: Any) -> None:
        values = self._marked()
        self.stack.append({_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)})

    def _tuple1(self, _: Any, n: int = 1) -> None:
        values = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.stack.append(values)

    def _tuple2(self, _: Any) -> None:
        self._tuple1(_, 2)

    def _tuple3(self, _: Any) -> None:
        self._tuple1(_, 3)

    def _global(self, name: str) -> None:
        self._known(name.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._known(f"{_expect(module, str)}.{_expect(name, str)}")

    def _known(self, name: str) -> None:
        name = re.sub(r"^__builtin__\.", "builtins.", name)  # as Python 2 calls it, and old protocols still do
        if name not in self.known:
            raise Refused(
                f"{self.where}: the pickle in it asks for {show(name)}, which is no tensor and no plain data: it is "
                "not loaded, and nothing of it was run"
            )
        self.stack.append(self.known[name])

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_expect(function, Maker).make(*_expect(args, tuple)))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            state = state[0] or state[1] if isinstance(state, tuple) and len(state) == 2 else state
            target.fields.update(state if isinstance(state, dict) else {"state": state})
        else:  # such as the attribute _metadata of a state dict, which says nothing of its content
            _expect(target, dict)

    def _binpersid(self, _: Any) -> None:
        if self.storage is None:
            raise Refused(f"{self.where}: the pickle in it refers to a storage, and has none: it is not loaded")
        self.stack.append(self.storage(self.stack.pop()))


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is expected")
    return value


def _key(key: Any) -> Any:
    """A key of a dict: a scalar, a record, or a flat tuple of scalars (what is deeper could be hashed for ever)."""
    flat = isinstance(key, tuple) and all(isinstance(part, SCALARS) for part in key)
    if not (flat or isinstance(key, (*SCALARS, Record))):
        raise TypeError(f"{type(key).__name__} as a key")
    return key


def plain(data: bytes, where: str, known: Mapping[str, Any], storage: Callable[[Any], Any] | None = None) -> Any:
    """The object that a pickle describes, of plain data.

    where: for errors. known: the full name of a global -> a Maker, or the constant that it stands for. storage: what a
    persistent id stands for. Raises UserError naming what the pickle asks for and is not known, or that it is damaged.
    """
    try:
        return _Machine(where, known, storage).run(data)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, StopIteration, OverflowError) as error:
        problem = one_line(" ".join(str(error).split())[:120])
        raise Refused(f"{where}: the pickle in it is damaged, or is none of a checkpoint ({problem})") from error

"""Checkpoints in which each rank of Megatron-LM wrote its own file: mp_rank_XX[_YYY]/model_optim_rng.pt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box
from pretrain import families
from pretrain.errors import UserError
from pretrain.layout.cuts import Parameter, Place
from pretrain.megatron_lm.archive import Stored, load
from pretrain.megatron_lm.arguments import architecture_of, arguments_of, constants
from pretrain.megatron_lm.names import IGNORED, canonical, layer_of
from pretrain.megatron_lm.source import MOMENTS, Opened, Source, number
from pretrain.runtime.documents import one_line, show

FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(_\d{3})?", re.ASCII)
FILES = ("model_optim_rng.pt", "model_rng.pt")
_HALF = (torch.float16, torch.bfloat16)


def open_ranks(folder: Path, given: Mapping[str, Any] | None, moments: bool) -> Opened:
    """The checkpoint in `folder`, one iteration. given: its arguments, where it has none. Raises UserError."""
    files = rank_files(folder)
    states = {place: _state(path) for place, path in files.items()}
    first = states[min(states)]
    args = arguments_of(first, given, folder)
    version = first.get("checkpoint_version", 0)
    if not isinstance(version, (int, float)) or version < 2:
        raise UserError(
            f"{folder}: checkpoint_version {show(version)}: before 2.0 queries, keys and values lay in another order; "
            "load and save it once in a newer Megatron-LM"
        )
    pp = 1 + max(pp_rank for pp_rank, _ in files)
    tp = 1 + max(tp_rank for _, tp_rank in files)
    _check_places(folder, args, files, pp, tp)
    arch = architecture_of(args, str(folder))
    source = Source(folder, arch)
    for tp_rank in range(tp):
        ranks = [Rank(files[p, tp_rank], states[p, tp_rank]) for p in range(pp)]
        for place, pp_rank, content in placed(arch, [rank.chunks for rank in ranks], tp_rank, tp, folder):
            ranks[pp_rank].take(arch, place, content)
        for rank in ranks:
            rank.hold(source, moments)
    source.check()
    iteration = number(first.get("iteration", 0), f"{folder}: iteration")
    step, optimizer = constants(first.get("optimizer"), str(folder), iteration)
    has = len(source.kinds) > 1
    return Opened(source, "torch", args, iteration, step if has else 0, optimizer if has else {})


def rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """(pipeline rank, tensor-parallel rank) -> the file. Raises UserError for experts, and where one is missing."""
    files = {}
    for path in sorted(folder.iterdir()):
        if not (match := FOLDER.fullmatch(path.name)):
            continue
        if match[3]:
            raise UserError(f"{path}: a rank of expert parallelism: Cambium has no mixture of experts")
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"{path / FILES[0]}: it is not there, so the file of a rank is missing")
        files[int(match[2] or 0), int(match[1])] = file
    return files


def _check_places(
    folder: Path, args: Mapping[str, Any], files: Mapping[tuple[int, int], Path], pp: int, tp: int
) -> None:
    """Raises UserError where the files are not those of all ranks."""
    tp = max(tp, _size(args, "tensor_model_parallel_size"))
    pp = max(pp, _size(args, "pipeline_model_parallel_size"))
    for pp_rank in range(pp):
        for tp_rank in range(tp):
            if (pp_rank, tp_rank) not in files:
                name = f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if pp > 1 else "")
                raise UserError(f"{folder / name / FILES[0]}: it is not there, and there are {tp} x {pp} ranks")


def _size(args: Mapping[str, Any], key: str) -> int:
    value = args.get(key)
    return value if type(value) is int else 1


def _state(path: Path) -> dict[str, Any]:
    state = load(path)
    if not isinstance(state, dict) or not any(key in state for key in ("model", "model0")):
        raise UserError(f"{path}: it has no model, so it is not what Megatron-LM saves")
    return state


def flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Stored]]:
    """The tensors of a state dict by their full names, in order; legacy models nest one dict in another."""
    for key, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Stored):
            yield f"{prefix}{key}", value
        else:
            yield from flat(value, f"{prefix}{key}.")


def placed(
    arch: Architecture, chunks: Sequence[Sequence[dict[str, Stored]]], tp_rank: int, tp: int, folder: Path
) -> Iterator[tuple[Place, int, dict[str, Stored]]]:
    """(the place of a pipeline chunk, its pipeline rank, its parameters by their canonical names), in order.

    chunks: of each pipeline rank, its chunks. How many layers each has is counted, whatever the split was.
    """
    pp, virtual, at = len(chunks), len(chunks[0]), 0
    for chunk in range(pp * virtual):
        content = chunks[chunk % pp][chunk // pp]
        layers = len({layer_of(name) for name in content} - {None})
        blocks = tuple(enumerate(arch.blocks[at : at + layers]))
        at += layers
        yield Place(tp_rank, tp, blocks, chunk == 0, chunk == pp * virtual - 1), chunk % pp, content
    if at != arch.layers:
        raise UserError(f"{folder}: its ranks have {at} layers, and its arguments say {arch.layers}")


@dataclass
class Rank:
    """One file: the parameters of its chunks in the order of the model, and the state of its optimizer."""

    path: Path
    state: dict[str, Any]

    def __post_init__(self) -> None:
        names = ["model"] if "model" in self.state else sorted(k for k in self.state if re.fullmatch(r"model\d+", k))
        self.chunks = [self._canonical(self.state[name]) for name in names]
        self.parameters: list[tuple[Parameter, Stored]] = []

    def _canonical(self, model: Any) -> dict[str, Stored]:
        return {canonical(name): tensor for name, tensor in flat(model) if not IGNORED.search(name)}

    def take(self, arch: Architecture, place: Place, content: dict[str, Stored]) -> None:
        """The chunk at a place. Raises UserError where its parameters are not those of the architecture."""
        expected = {p.name: p for p in families.of(arch.family).layout(arch, place)}
        if missing := sorted(expected.keys() - content.keys()):
            raise UserError(f"{self.path}: {missing[0]} is not there, and the arguments say that it is")
        if unknown := sorted(content.keys() - expected.keys()):
            raise UserError(f"{self.path}: {one_line(unknown[0])} is unknown to Cambium's {arch.family}")
        for name, tensor in content.items():
            check_shape(self.path, name, tensor, expected[name])
            self.parameters.append((expected[name], tensor))

    def hold(self, source: Source, moments: bool) -> None:
        """Tells a source what there is."""
        optimizer = self.state.get("optimizer") if moments else None
        if optimizer and (self.path.parent / "distrib_optim.pt").is_file():
            raise UserError(
                f"{self.path.parent / 'distrib_optim.pt'}: Adam's moments are in the buckets of a distributed "
                "optimizer, whose places only Megatron-LM knows: save it as torch_dist with "
                "--dist-ckpt-optim-fully-reshardable, or import --weights-only"
            )
        masters, states = self._optimizer(optimizer) if isinstance(optimizer, dict) else ({}, {})
        for index, (parameter, tensor) in enumerate(self.parameters):
            if not parameter.owner:
                continue
            held = Box.whole(parameter.shape)
            source.hold("weight", parameter, held, masters.get(index, tensor))
            for kind in MOMENTS if optimizer else ():
                source.hold(kind, parameter, held, states[index][kind])

    def _optimizer(self, optimizer: dict[str, Any]) -> tuple[dict[int, Stored], dict[int, dict[str, Stored]]]:
        """Of the parameters, by their numbers: the fp32 masters, and the moments.

        Megatron-LM's groups are the parameters with weight decay (matrices) and those without, each in the order of the
        model; in mixed precision it keeps a master for each half-precision parameter of a group.
        """
        inner = optimizer.get("optimizer", optimizer)
        try:
            groups = [list(group["params"]) for group in inner["param_groups"] if group["params"]]
            decays = [group.get("wd_mult", 1.0) for group in inner["param_groups"] if group["params"]]
            states, copies = inner["state"], optimizer.get("fp32_from_fp16_params", ())
            copies = [list(group) for group in copies if group]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: its optimizer is not what Megatron-LM saves ({show(error)})") from error
        matrices = [i for i, (p, _) in enumerate(self.parameters) if len(p.shape) > 1]
        others = [i for i, (p, _) in enumerate(self.parameters) if len(p.shape) == 1]
        members = [part for part in (matrices, others) if part]
        if len(decays) == 2 and decays[0] == 0 != decays[1]:
            members.reverse()
        if [len(group) for group in groups] != [len(part) for part in members]:
            raise UserError(
                f"{self.path}: its optimizer has groups of {[len(g) for g in groups]} parameters, and matrices and "
                f"others are {[len(part) for part in members]}: import --weights-only"
            )
        masters: dict[int, Stored] = {}
        moments: dict[int, dict[str, Stored]] = {}
        for group, (ids, part) in enumerate(zip(groups, members, strict=True)):
            half = [i for i in part if self.parameters[i][1].dtype in _HALF]
            if half and (group >= len(copies) or len(copies[group]) != len(half)):
                raise UserError(f"{self.path}: it has no fp32 master for each half-precision parameter")
            masters |= dict(zip(half, copies[group], strict=True)) if half else {}
            moments |= {i: self._moments(states, id_, i) for id_, i in zip(ids, part, strict=True)}
        for i, master in masters.items():
            check_shape(self.path, f"the master of {self.parameters[i][0].name}", master, self.parameters[i][0])
        return masters, moments

    def _moments(self, states: Any, number: Any, index: int) -> dict[str, Stored]:
        parameter, state = self.parameters[index][0], states.get(number) if isinstance(states, dict) else None
        held: dict[str, Any] = {kind: state.get(kind) for kind in MOMENTS} if isinstance(state, dict) else {}
        if not held:
            raise UserError(f"{self.path}: {parameter.name} has no moments: import --weights-only")
        for kind, tensor in held.items():
            check_shape(self.path, f"{kind} of {parameter.name}", tensor, parameter)
        return held


def check_shape(path: Path, name: str, tensor: Any, parameter: Parameter) -> None:
    """Raises UserError unless it is a tensor of the parameter's shape."""
    if not isinstance(tensor, Stored) or tensor.shape != parameter.shape:
        shape = tensor.shape if isinstance(tensor, Stored) else show(tensor)
        raise UserError(f"{path}: {name} has shape {shape}, and the arguments say {parameter.shape}")

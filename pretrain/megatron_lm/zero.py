"""Checkpoints of DeepSpeed's ZeRO (stages 1 and 2): each rank's flat part of the fp32 masters and of Adam's moments.

A rank says of each parameter how long its fragment is and where in the rank's part it begins. Which elements of the
parameter these are follows: the fragments of a parameter follow each other over the data-parallel ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pretrain import families
from pretrain.errors import UserError
from pretrain.layout import fragment_boxes
from pretrain.layout.cuts import Parameter, Place
from pretrain.megatron_lm.archive import Stored, load
from pretrain.megatron_lm.arguments import architecture_of, arguments_of, constants
from pretrain.megatron_lm.names import canonical
from pretrain.megatron_lm.pickles import Record
from pretrain.megatron_lm.source import MOMENTS, Opened, Source, number
from pretrain.runtime.documents import one_line, show

OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d{2,})_optim_states\.pt", re.ASCII)
MODEL = re.compile(r"mp_rank_(\d{2,})_model_states\.pt", re.ASCII)
STAGE_3 = re.compile(r"(?:bf16_)?zero_pp_rank_\d+_mp_rank_\d{2,}_model_states\.pt", re.ASCII)
PIPELINE = re.compile(r"layer_\d+(?:-model_(\d+))?-model_states\.pt", re.ASCII)
NUMBERED = re.compile(r"(\d+)\.(.*)", re.ASCII)


def open_zero(folder: Path, given: Mapping[str, Any] | None, moments: bool) -> Opened:
    """The checkpoint in `folder`, one step. given: its arguments, where it has none. Raises UserError."""
    names = sorted(path.name for path in folder.iterdir())
    if any(STAGE_3.fullmatch(name) for name in names):
        raise UserError(f"{folder}: a checkpoint of ZeRO's stage 3: only stages 1 and 2 can be imported")
    chunks = {m[1] for name in names if (m := PIPELINE.fullmatch(name))}
    files = {tuple(map(int, m.groups())): folder / m[0] for name in names if (m := OPTIMIZER.fullmatch(name))}
    models = {int(m[1]): folder / m[0] for name in names if (m := MODEL.fullmatch(name))}
    state = _model(models.get(0), folder)
    args = arguments_of(state, given, folder)
    arch = architecture_of(args, str(folder))
    ranks, dp = (max(place[i] for place in files) + 1 for i in (1, 0))
    parts = {place: _Part(_there(files, folder, *place), dp) for place in product(range(dp), range(ranks))}
    # Under a PipelineModule a rank's number counts tensor-parallel ranks within pipeline ranks.
    tp = len(chunks) or ranks
    spelled = pipeline_names(parts.values()) if chunks else canonical
    source = Source(folder, arch)
    for tp_rank in range(tp):
        place = Place(tp_rank, tp, tuple(enumerate(arch.blocks)), True, True)
        expected = {p.name: p for p in families.of(arch.family).layout(arch, place)}
        at = dict.fromkeys(expected, 0)
        for rank, dp_rank in product(range(tp_rank, ranks, tp), range(dp)):
            part = parts[dp_rank, rank]
            for fragment in part.fragments(spelled):
                if rank >= tp and fragment.name.startswith("embedding."):
                    continue  # the last stage's copy of a tied embedding
                if (parameter := expected.get(fragment.name)) is None:
                    raise UserError(f"{part.path}: {one_line(fragment.name)} is unknown to Cambium's {arch.family}")
                if parameter.owner:
                    fragment.hold(source, parameter, at[fragment.name], moments)
                at[fragment.name] += fragment.length
        for name, parameter in expected.items():
            if at[name] != prod(parameter.shape):
                raise UserError(f"{folder}: {name} has {at[name]} of {prod(parameter.shape)} elements in its ranks")
    iteration = number(state.get("iteration", state.get("global_steps", 0)), f"{folder}: iteration")
    step, optimizer = constants(parts[0, 0].inner, str(parts[0, 0].path), iteration)
    source.check()
    has = len(source.kinds) > 1
    return Opened(source, "zero", args, iteration, step if has else 0, optimizer if has else {})


def _there(files: Mapping[Any, Path], folder: Path, dp_rank: int, rank: int) -> Path:
    if (dp_rank, rank) not in files:
        name = f"zero_pp_rank_{dp_rank}_mp_rank_{rank:02d}_optim_states.pt"
        raise UserError(f"{folder / name}: it is not there, and others are of more ranks")
    return files[dp_rank, rank]


def pipeline_names(parts: Iterable[_Part]) -> Callable[[str], str]:
    """From the names of a PipelineModule to ours. Its modules are numbered through: between the embedding, the layers,
    the norm and the head there are functions, and the numbers are not the same in all versions."""
    names = {name for part in parts for slices in part.slices for name in slices}
    numbered = [(int(m[1]), m[2]) for name in names if (m := NUMBERED.fullmatch(name))]
    layers = sorted({n for n, rest in numbered if rest.startswith(("self_attention.", "attention."))})

    def spelled(name: str) -> str:
        match = NUMBERED.fullmatch(name)
        if match is None:
            return canonical(re.sub(r"^tied_modules\.\w+\.", "", name))
        number, rest = int(match[1]), match[2]
        if number in layers:
            return canonical(f"decoder.layers.{layers.index(number)}.{rest}")
        if rest == "lm_head.weight":
            return "output_layer.weight"
        return f"decoder.final_layernorm.{rest}" if rest in ("weight", "bias") else canonical(rest)

    return spelled


def _model(path: Path | None, folder: Path) -> dict[str, Any]:
    if path is None:
        raise UserError(f"{folder / 'mp_rank_00_model_states.pt'}: it is not there")
    state = load(path)
    if not isinstance(state, dict):
        raise UserError(f"{path}: it holds no dict, so it is not what DeepSpeed saves")
    return state


@dataclass(frozen=True)
class _Fragment:
    """Elements of a parameter that a rank has: `length` of them from `begin` on, in its flat part of each kind."""

    name: str
    flats: Mapping[str, Stored]
    begin: int
    length: int

    def hold(self, source: Source, parameter: Parameter, first: int, moments: bool) -> None:
        """Tells a source of it. first: which element of the parameter it begins with."""
        for kind, flat in self.flats.items():
            if kind in MOMENTS and not moments:
                continue
            for box in fragment_boxes(parameter, first, self.length):
                place = flat.begin + (self.begin + box.offset) * flat.dtype.itemsize
                strides = (box.stride, 1)[-len(box.box.shape) :]
                stored = replace(flat, begin=place, shape=box.box.shape, strides=strides)
                source.hold_box(kind, box.tensor, box.box, stored)


class _Part:
    """The file of one rank."""

    def __init__(self, path: Path, dp: int) -> None:
        self.path = path
        try:
            state = load(path)["optimizer_state_dict"]
            self.masters = list(state["single_partition_of_fp32_groups"])
            self.slices = list(state["param_slice_mappings"])
            self.inner = state["base_optimizer_state"]
            counts = state["partition_count"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: it is not what DeepSpeed's ZeRO saves since 0.7 ({show(error)})") from error
        if (given := set(counts if isinstance(counts, (list, tuple)) else [counts])) != {dp}:
            raise UserError(f"{path}: it is of {show(sorted(given, key=str))} data-parallel ranks, and there are {dp}")

    def fragments(self, spelled: Callable[[str], str]) -> Iterator[_Fragment]:
        """The fragments of this rank, in order."""
        for group, slices in enumerate(self.slices):
            flats = {"weight": self.masters[group], **self._moments(group)}
            for name, address in slices.items():
                numel, start = _address(address, self.path, name)
                for kind, flat in flats.items():
                    if not isinstance(flat, Stored) or len(flat.shape) != 1 or start + numel > flat.shape[0]:
                        raise UserError(f"{self.path}: {kind} of {one_line(name)} is not where its rank says it is")
                yield _Fragment(spelled(name), flats, start, numel)

    def _moments(self, group: int) -> dict[str, Any]:
        inner = self.inner
        states = inner.get("state", {}) if isinstance(inner, dict) else dict(enumerate(inner))
        state = states.get(group, {})
        return {kind: state[kind] for kind in MOMENTS if kind in state}


def _address(address: Any, path: Path, name: str) -> tuple[int, int]:
    fields = address.fields if isinstance(address, Record) else {}
    numel, start = fields.get("numel"), fields.get("start")
    if type(numel) is not int or type(start) is not int or numel < 0 or start < 0:
        raise UserError(f"{path}: {show(name)} has no place in its part")
    return numel, start

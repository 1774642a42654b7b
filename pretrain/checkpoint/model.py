"""Checks whether all that a manifest says of its model and its run belongs together."""

from pathlib import Path

import numpy as np

from growth import Architecture, Generations, GrowthError, Plan
from pretrain.checkpoint.manifest import CorruptCheckpoint, Manifest
from pretrain.runtime import documents


def model_of(manifest: Manifest, where: Path) -> Architecture:
    """The architecture of a checkpoint of a model.

    Raises CorruptCheckpoint when its tensors, generations or growth events are not those of this architecture: each may
    be sound by itself, which is all that a manifest says when it is loaded, and still not be a model.
    """
    try:
        _check_layers(manifest)
        arch = Architecture.from_json(manifest.architecture)
        _check_tensors(arch, manifest)
        if manifest.generations:
            _check_generations(arch, manifest)
        for event in manifest.events:
            if ("plan" in event) == ("imported" in event):
                raise GrowthError(f"an event of stage {event['stage']!r} is neither a growth nor an import")
            if "plan" in event:
                Plan.from_json(event["plan"])
    except ValueError as error:
        problem = documents.one_line(str(error))
        raise CorruptCheckpoint(f"{where}: what the manifest says is not of one model: {problem}") from error
    return arch


def _check_layers(manifest: Manifest) -> None:
    """Raises GrowthError for more layers than tensors, before a list of all layers' tensors is made."""
    if manifest.architecture["sizes"].get("layers", 0) > len(manifest.tensors):
        raise GrowthError(f"{manifest.architecture['sizes']['layers']} layers of {len(manifest.tensors)} tensors")


def _check_tensors(arch: Architecture, manifest: Manifest) -> None:
    expected = {name: tensor.shape for name, tensor in arch.tensors().items()}
    stored = {name: entry.shape for name, entry in manifest.model.items()}
    for name in {**expected, **stored}:
        if expected.get(name) != stored.get(name):
            raise GrowthError(f"{name} has shape {stored.get(name)}, and in this architecture {expected.get(name)}")


def _check_generations(arch: Architecture, manifest: Manifest) -> None:
    generations = manifest.generations
    if missing := sorted({"births", "count", "each"} - set(generations)):
        raise GrowthError(f"generations without {missing[0]}")
    if not 1 <= generations["count"] <= np.iinfo(np.uint8).max + 1 or len(generations["each"]) != generations["count"]:
        raise GrowthError(f"{generations['count']} generations and {len(generations['each'])} births")
    for axis in {**arch.sizes, **generations["births"]}:
        runs = generations["births"].get(axis, [])
        if sum(n for _, n in runs) != arch.sizes.get(axis, 0) or any(g >= generations["count"] for g, _ in runs):
            raise GrowthError(f"the generations of {axis} are not those of its {arch.sizes.get(axis, 0)} indices")
    Generations.from_json(generations)

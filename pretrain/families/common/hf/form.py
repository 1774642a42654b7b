"""What a family must say to be read from and written to a Hugging Face folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from growth import Architecture
from pretrain.families.common.hf.stored import Stored, as_it_is

MODULES = "modules"
SORTED = "sorted"


@dataclass(frozen=True)
class Code:
    """A model that transformers has no class for, as a module of Python that goes with its weights.

    Where its layers are attention or an MLP alone, the key `order` of config.json says so, and where its heads have
    spans the key `span`; its other keys are the usual class's.

    file: the module, which needs torch and transformers only. model_type, model_class: as in HfForm. auto: class of
    transformers that a user calls -> class of the module. says: which of the two keys the module can.
    """

    file: Path
    model_type: str
    model_class: str
    auto: Mapping[str, str]
    says: tuple[str, ...] = ("order",)

    def auto_map(self) -> dict[str, str]:
        """By which transformers finds the classes."""
        return {key: f"{self.file.stem}.{name}" for key, name in self.auto.items()}


@dataclass(frozen=True)
class HfForm:
    """model_type and model_class are transformers' names. rows: the logical tensors (names as in growth's table, which
    are Hugging Face's) in the order of the model's state_dict, which decides what goes into which shard.

    config: the keys of config.json that follow from an architecture; raises UserError for what transformers' model
    cannot express. architecture: the architecture of a config.json; raises UserError for what growth's cannot.
    kept: keys of an imported config.json that say nothing about the shape, and go out again as they came in. stored:
    how a row is made of logical tensors (by name, with a layer's number). repeated: endings of tensors that an imported
    folder may have too, and that say nothing new. tied: tensors that it may have too -> the row that each must equal.
    base: what the names of the rows begin with, and do not in a folder of the model without its output layer.
    fits: whether a config.json of this model_type is of this family, where several have it: of the first that fits.
    generates: whether the model writes text. code: of a model with an order of sublayers, or with spans of heads; with
    the same model_type, of all models of the family.
    """

    model_type: str
    model_class: str
    rows: tuple[str, ...]
    config: Callable[[Architecture], dict[str, Any]]
    architecture: Callable[[Mapping[str, Any], str], Architecture]
    kept: tuple[str, ...]
    stored: Callable[[str], Stored] = as_it_is
    repeated: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True
    generates: bool = True
    code: Code | None = None

    @property
    def carried(self) -> Code | None:
        """The code that goes with a model of this form; None: transformers has its class."""
        return self.code if self.code and self.code.model_type == self.model_type else None

    def coded(self) -> "HfForm":
        """That of a model which goes with its code: its tensors are those of growth's table."""
        assert self.code is not None
        return replace(
            self, model_type=self.code.model_type, model_class=self.code.model_class, stored=as_it_is, rows=()
        )

    def names(self, arch: Architecture, order: str = MODULES) -> list[str]:
        """The names of all tensors in the order in which save_pretrained cuts them into shards: of the modules for a
        model that was made, SORTED (layers by number) for one that it had loaded."""
        if not self.rows:
            return list(arch.tensors())
        layered = [i for i, row in enumerate(self.rows) if "{layer}" in row]
        first, last = layered[0], layered[-1] + 1
        layers = [row.format(layer=i) for i in range(arch.layers) for row in self.rows[first:last]]
        names = [*self.rows[:first], *layers, *self.rows[last:]]
        return sorted(names, key=_natural) if order == SORTED else names


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]

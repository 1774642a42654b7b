"""All that there is to say of a family of models, in one record.

What takes long to import is named by its module and loaded when it is first used: the model on Megatron-core, and the
text.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from growth import Architecture
from growth.family import Family as Table
from pretrain.data.samples import Samples
from pretrain.families.common.arguments import MegatronForm
from pretrain.families.common.hf.form import HfForm
from pretrain.families.common.reference import Reference
from pretrain.layout.cuts import Parameter, Place
from pretrain.losses import Outputs, Term

if TYPE_CHECKING:
    from pretrain.families.common.text import Feed


class Model(Protocol):
    """The module `model` of a family: its form on Megatron-core."""

    def config_fields(self, arch: Architecture) -> dict[str, object]:
        """What is its own in Megatron's TransformerConfig; sizes, scalars and norms follow from its table."""

    def build_chunk(self, arch: Architecture, config: Any, **where: Any) -> torch.nn.Module:
        """One pipeline chunk; where: seq_len, kinds (of its blocks), first, last, chunk (its index on this rank, None
        without interleaving) and fused (whether what lies between matrix products is kernels)."""

    def forward(self, model: torch.nn.Module, samples: Samples) -> Any:
        """On the last pipeline rank what `outputs` takes; elsewhere what goes on to the next one."""

    def outputs(self, output: Any) -> Outputs:
        """What the terms of the loss take, from what `forward` gave on the last pipeline rank."""

    def logits(self, model: torch.nn.Module, samples: Samples) -> Tensor:
        """On the last pipeline rank the local logits of the words, [B, S, vocab / TP]."""


@dataclass(frozen=True)
class Head:
    """What counting FLOPs and bytes must know of the head before the product with the vocabulary, which its table does
    not say. flops: of one sample, from the sizes of the architecture and the sample's length. transform: whether every
    token is transformed there, and the logits have a bias.
    """

    flops: Callable[[Mapping[str, int], int], int] = lambda sizes, seq_len: 0
    transform: bool = False


@dataclass(frozen=True)
class HfTeacher:
    """A model of transformers that is no form of a family, and may teach its students as it is.

    model_type: transformers' name of it. architecture: that of the family which has its sizes, and so as many
    parameters and FLOPs, from a config.json and the place to name in errors; raises UserError for what the model cannot
    have. module: with a function `load` from (folder, architecture, for each id of the student's that of the folder,
    dtype, words=) to a torch module, which makes of samples the logits of the words [B, S, V] or, without `words`, the
    queries, keys and values of the architecture's last layer, [B, S, hidden] each.
    """

    model_type: str
    architecture: Callable[[Mapping[str, Any], str], Architecture]
    module: str


@dataclass(frozen=True)
class Family:
    """table: its logical tensors, for growth. losses: the terms of its loss; the first is of the words.

    ahead: how many units past the end of a sample's inputs its labels reach; a unit is a token, or the longest of a
    model whose blocks make units of several (growth.Architecture.unit). samples: samples all of whose labels count,
    from token ids [n, S + a] and this number a in tokens. reference: the model in plain torch, which of samples needs
    but the inputs. layout: the parameters of one pipeline chunk, in the order in which Megatron-core registers them.
    model_module: a module with the functions of `Model`. text_module: a module with a class `TEXT`. hf: its form in
    transformers; None: it has none. head: see Head. hf_teacher: see HfTeacher; None: there is none. megatron: its
    arguments in Megatron-LM; None: it has none there. memory: whether its attentions can see what their blocks remember
    of the text before a sample, see pretrain.families.common.memory. relu: whether its MLPs have one. variant_of: the
    family whose operators do to this one what they do to it, so that they are measured once. prompt: of a family whose
    labels are more than one token ahead, the sample of a text of any length: from its last logits, as many as they are
    ahead, the next tokens follow.
    """

    table: Table
    losses: tuple[Term, ...]
    samples: Callable[[Tensor, int], Samples]
    ahead: int
    reference: Reference
    layout: Callable[[Architecture, Place], list[Parameter]]
    model_module: str
    text_module: str
    hf: HfForm | None = None
    head: Head = Head()
    hf_teacher: HfTeacher | None = None
    megatron: MegatronForm | None = None
    memory: bool = False
    relu: bool = False
    variant_of: str = ""
    prompt: Callable[[Sequence[int], Architecture], Samples] | None = None

    @property
    def name(self) -> str:
        return self.table.name

    def tokens_ahead(self, arch: Architecture) -> int:
        """How many tokens past the end of a sample's inputs its labels reach, for a model of this family."""
        return self.ahead * arch.unit

    def samples_of(self, arch: Architecture, ids: Tensor) -> Samples:
        """Samples of a model of this family all of whose labels count, from token ids [n, S + tokens_ahead]."""
        return self.samples(ids, self.tokens_ahead(arch))

    @cached_property
    def model(self) -> Model:
        """Brings Megatron-core, which the command-line tools do without."""
        module: Any = importlib.import_module(self.model_module)
        return module

    @property
    def text(self) -> type[Feed]:
        """The text that its stages are trained on."""
        text: type[Feed] = importlib.import_module(self.text_module).TEXT
        return text

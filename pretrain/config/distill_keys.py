"""The keys of a stage under `distill`: a trained model that it learns from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.kinds import Count, Size
from pretrain.config.section import Section


@dataclass(frozen=True)
class Distill(Section):
    """The teacher of a stage: a trained model of the same family and vocabulary, which is computed beside the student
    on the same text, and does not change."""

    teacher: str = ""
    """An earlier stage of this curriculum; or a folder, with a slash in its name: of a checkpoint, a stage or a run, or
    of a model in Hugging Face's format that may teach the family as it is, which every rank computes as a whole (see
    HfTeacher in pretrain/families/family.py). Empty: there is no teacher."""
    teacher_hash: str = ""
    """Hash of the manifest that the teacher's checkpoint must have, or of the files of its folder. Empty: any at first,
    and from then on the one that the stage has begun with, which its configuration then holds."""
    kind: Literal["minilm", "minilm2", "logits"] = "minilm2"
    """What is learned. minilm: the attention of the teacher's layer and the relations of its values, with as many heads
    (Wang et al. 2020). minilm2: the relations of its queries, keys and values among themselves (Wang et al. 2021).
    logits: its distribution over each word (Hinton et al. 2015). See pretrain/losses/relations.py."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of logits: what those of teacher and student are divided by."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share that the labels' own loss has in what is minimised; the rest is the divergence from the teacher. At 0
    nothing above what is compared is trained, nor computed: with minilm and minilm2 neither the head nor the end of the
    last layer."""
    relation_heads: Size = 48
    """Of minilm2: heads of relations; a divisor of heads x head_dim of teacher and student."""
    teacher_layer: Count = 0
    """Of minilm and minilm2: the number of the teacher's layer that is learned from, from 1; 0: the last. Nothing above
    it is held or computed. Of the student it is the last."""

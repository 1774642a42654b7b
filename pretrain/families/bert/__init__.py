"""BERT (Devlin et al., 2019) as Megatron-LM trains it (Shoeybi et al., 2019, section 3)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.data.samples import Samples
from pretrain.families.bert.hf import FORM, architecture
from pretrain.families.bert.layout import parameters
from pretrain.families.bert.reference import REFERENCE
from pretrain.families.bert.table import TABLE
from pretrain.families.family import Family, Head, HfTeacher
from pretrain.losses import MASKED_TOKEN, NEXT_SENTENCE


def samples(ids_BS: Tensor, ahead: int) -> Samples:
    """Every token is to be told from itself, and the parity of the first one as the next sentence."""
    ones = torch.ones(ids_BS.shape)
    return {
        "inputs": ids_BS,
        "labels": ids_BS,
        "mask": ones,
        "types": torch.zeros_like(ids_BS),
        "valid": ones,
        "next_sentence": ids_BS[:, 0] % 2,
    }


def head_flops(sizes: Mapping[str, int], seq_len: int) -> int:
    """Of the transform of every token; of the pooler and the next sentence, of the first token alone."""
    return 2 * sizes["hidden"] ** 2 * (seq_len + 1) + 2 * sizes["hidden"] * sizes["labels"]


BERT = Family(
    table=TABLE,
    losses=(MASKED_TOKEN, NEXT_SENTENCE),
    samples=samples,
    ahead=0,
    reference=REFERENCE,
    layout=parameters,
    head=Head(head_flops, transform=True),
    model_module="pretrain.families.bert.model",
    text_module="pretrain.families.bert.text",
    hf=FORM,
    hf_teacher=HfTeacher("bert", architecture, "pretrain.families.bert.devlin"),
)

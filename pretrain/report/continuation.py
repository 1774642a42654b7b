"""Text that an exported model writes, through transformers alone: none of Cambium's models is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import UserError
from pretrain.families import FAMILIES, Family
from pretrain.runtime import documents

CONFIG = "config.json"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    tokens: int = 120
    """The most tokens of a continuation, which also ends where the model's positions do."""
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def writes(export: Path) -> bool:
    """Whether there is a model in a Hugging Face folder that writes text: an encoder such as BERT does not.

    Raises UserError for a config that cannot be read.
    """
    if not (export / CONFIG).is_file():
        return False
    family = _family(export)
    return family is None or family.hf is None or family.hf.generates


def says_next(export: Path) -> bool:
    """Whether the logits of a model that writes text are of the next token, by which tasks score it, and not of others
    further ahead. Raises UserError for a config that cannot be read."""
    family = _family(export)
    return family is None or family.prompt is None


def _family(export: Path) -> Family | None:
    """Of a Hugging Face folder; None: it is of none, or of one that we do not know."""
    model_type = documents.read(export / CONFIG, documents.Object).get("model_type")
    for family in FAMILIES.values():
        form = family.hf
        if form and model_type in (form.model_type, form.code and form.code.model_type):
            return family
    return None


def trusted(export: Path) -> bool:
    """Whether the code that a folder has, if any, is what an export writes: then it may be run."""
    codes = [family.hf.code.file for family in FAMILIES.values() if family.hf and family.hf.code]
    found = sorted(export.glob("*.py"))
    ours = {code.name: code.read_bytes() for code in codes}
    return bool(found) and all(ours.get(file.name) == file.read_bytes() for file in found)


def continuations(export: Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """The text that the model in a Hugging Face folder makes of each prompt, which it begins with.

    Raises UserError for a folder that transformers cannot load and for a prompt that leaves no room.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        trust = {"trust_remote_code": trusted(export)}  # given either way, or it would ask
        tokenizer = AutoTokenizer.from_pretrained(export, **trust)
        model = AutoModelForCausalLM.from_pretrained(export, **trust).eval()
    except Exception as error:  # transformers raises almost anything for a damaged folder
        reason = documents.one_line(str(error))
        raise UserError(f"{export}: transformers cannot load this export, so make it again: {reason}") from error
    positions = model.config.max_position_embeddings
    texts = []
    for prompt in prompts:
        torch.manual_seed(sampling.seed)
        inputs = tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if not 0 < length < positions:
            raise UserError(f"--prompt {prompt!r} is {length} tokens: give 1 to {positions - 1}, the model's positions")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=min(sampling.tokens, positions - length),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return texts

"""Text that an exported model writes, through transformers and nothing of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    tokens: int = 120
    """Tokens of a continuation, at most."""
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def continuations(export: Path, prompts: Sequence[str], sampling: Sampling) -> list[str]:
    """What the model in a Hugging Face folder makes of each prompt, prompt included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export).eval()
    texts = []
    for prompt in prompts:
        torch.manual_seed(sampling.seed)
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=sampling.tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return texts

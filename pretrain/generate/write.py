"""Goes on from a prompt, a token at a time, with the keys and values of what came before; or as many tokens at a time
as a model predicts at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from growth import Architecture
from growth.evaluate.box_values import Read
from pretrain import families
from pretrain.errors import UserError
from pretrain.families.common.reference import Continued
from pretrain.generate.sampling import Sampling, choose


def can_write(arch: Architecture) -> None:
    """Raises UserError for a model that sees both sides of a word, and goes on from nothing."""
    if not families.of(arch.family).text.causal:
        raise UserError(f"a {arch.family} fills gaps in a text, and writes none")


def continuation(
    read: Read,
    arch: Architecture,
    prompt: Sequence[int],
    *,
    tokens: int,
    how: Sampling,
    seed: int,
    ends: Collection[int] = (),
    memory: int = 0,
) -> Iterator[int]:
    """Yields the ids that a model goes on with from a prompt of at least one: at most `tokens` of them, up to the end
    of its positions, and none of those that end a text.

    read: of a model in memory, since every token takes every weight. memory: how many tokens before the prompt's last
    one, or before a new one, it sees; 0: all. Raises UserError as `can_write`, for an empty
    prompt and for one that leaves no position free.
    """
    can_write(arch)
    positions = arch.sizes.get("positions")
    if not prompt or (positions and len(prompt) >= positions):
        most = f"1 to {positions - 1}, fewer than the model's positions" if positions else "at least one"
        raise UserError(f"a prompt of {len(prompt)} tokens: give {most}")
    tokens = min(tokens, positions - len(prompt)) if positions else tokens
    draw, text, family = torch.Generator().manual_seed(seed), Continued(memory), families.of(arch.family)
    whole, behind, ahead = list(prompt), list(prompt), family.tokens_ahead(arch)
    for number in range(tokens):
        if (at := number % ahead) == 0:  # of the tokens that are predicted at once
            samples = family.prompt(whole, arch) if family.prompt else text.by(torch.tensor([behind]))
            with torch.no_grad():
                logits_TV = family.reference(read, arch, samples, torch.float32)["words"][0, -ahead:]
            behind = []
        token = choose(logits_TV[at], how, draw)
        if token in ends:
            return
        yield token
        whole.append(token)
        behind.append(token)

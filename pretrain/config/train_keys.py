"""The keys of a curriculum under `train`: how a stage is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from growth.adapters import PARTS, Adapters
from growth.mup import Mup as Base
from pretrain.config.kinds import Count, Derived, Fraction, Positive, Size, Tokens
from pretrain.config.section import Section


@dataclass(frozen=True)
class Plateau(Section):
    """When the held-out loss counts as one that has stopped falling."""

    window: Positive = 4
    """Validations whose mean loss is compared with that of as many before them."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.002
    """Share of the loss by which a window is to be below the one before it."""
    patience: Positive = 3
    """Validations in a row at which it is not."""


@dataclass(frozen=True)
class LayerDrop(Section):
    """What is left out in training (LayerDrop, Fan et al. 2019); a number stands for {p: NUMBER}."""

    p: Fraction = 0.0
    """Probability with which a block is left out of the passes over a micro-batch; the others run as they are."""
    sublayers: bool = False
    """Leave out the attention and the MLP of each block apart."""


def _as_mapping(value: Any) -> Any:
    return value if isinstance(value, Mapping | LayerDrop) else {"p": value}


@dataclass(frozen=True)
class Lora(Section):
    """Low-rank adapters (Hu et al. 2021): linear layers stay as the stage found them, beside each W [out, in] there are
    B [out, rank] and A [rank, in], and alpha / rank * B A is added to it. The next stage begins with the sums."""

    rank: Derived = 0
    """Their rank; 0 or absent: there are none."""
    alpha: Annotated[float, Field(ge=0)] = 0.0
    """What they are multiplied by is this / rank; 0 or absent: rank."""
    on: tuple[Literal["attention", "mlp"], ...] = ("attention",)
    """Whose matrices have them, in every layer."""
    dropout: Fraction = 0.0
    """Probability with which a number that enters an adapter is dropped, by address as with train.dropout."""
    rest: Literal["freeze", "train"] = "freeze"
    """What becomes of everything but the linear layers that have them: norms, embeddings, the head, the MLP if they are
    on attention alone."""

    def adapters(self) -> Adapters | None:
        """For growth; None without a rank."""
        if not self.rank:
            return None
        return Adapters(self.rank, float(self.alpha or self.rank), tuple(part for part in PARTS if part in self.on))


@dataclass(frozen=True)
class Mup(Section):
    """Maximal-update parametrization (Yang et al. 2022; Dey et al. 2025 for depth): a rate that is best for a narrow
    model is best for a wide one. It multiplies the init of new weights, learning rate and epsilon of each tensor by
    what its width is in the base model over what it is here; `train.lr` is then the rate of the base model. A learning
    rate that is multiplied leaves weight decay as it is: a step decays by train.lr * train.weight_decay."""

    base_hidden: Derived = 0
    """`model.hidden` of the base model; 0 or absent: no muP. Keep it, in all stages of a curriculum."""
    base_heads: Derived = 0
    """Its `model.heads`, of the same head_dim; 0 or absent: as many for its hidden size as this model has."""
    base_ffn: Derived = 0
    """Its `model.ffn`; 0 or absent: as much for its hidden size as this model has."""
    base_layers: Derived = 0
    """Its layers, each an attention and an MLP; 0 or absent: depth changes no rate, and the init alone, as ever."""

    def base(self) -> Base | None:
        """For growth; None without a base model."""
        return Base(self.base_hidden, self.base_heads, self.base_ffn, self.base_layers) if self.base_hidden else None


@dataclass(frozen=True)
class Average(Section):
    """A moving average of the weights (Polyak and Juditsky 1992; of language models Kaddour 2022, "Stop wasting my
    time!", and Hägele et al. 2024), in fp32 beside the masters. Training does not see it; it is validated,
    saved and grown with the weights, and a constant rate may end with it in place of a decay."""

    half_life: Count = 0
    """Tokens after which what a step has added to it counts half; 0 or absent: there is no average. (A decay of d a
    step of n tokens is n * ln 2 / -ln d.) It begins as the weights that a stage begins with, or as the parent's."""

    def share(self, tokens: int) -> float:
        """Which part of the way to the weights it goes after a step of so many tokens."""
        return 1.0 - 0.5 ** (tokens / self.half_life)


@dataclass(frozen=True)
class Train(Section):
    """How a stage is trained. Budgets are in tokens of the stage's own vocabulary."""

    seq_len: Size
    """Length of a sample, in tokens."""
    global_batch: Size
    """Samples in an optimizer step, over all data-parallel ranks."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    tokens: Tokens = 0
    """Tokens trained on in this stage; 0 or absent: `epochs` says so."""
    epochs: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Instead of `tokens`: as many as the corpus's training text has, this many times."""
    until: Literal["tokens", "plateau", "gstack"] = "tokens"
    """What ends the stage; `tokens` or `epochs` are the most, and what the schedule reckons with. plateau: the held-out
    loss stops falling. gstack: the formula for the time to grow into the next stage (Du et al. 2024). After an early
    end the next stage goes on at the rate that this one had, and runs the rest of the curve over the tokens left."""
    plateau: Plateau = Plateau()
    """What `until: plateau` calls one; see train.eval_interval."""
    ramp_from: Derived = 0
    """Samples in the first optimizer steps of the stage; 0 or absent: `global_batch`, from the beginning."""
    ramp_by: Derived = 0
    """Samples by which a step grows, again and again, to `global_batch`; 0 or absent: `ramp_from`."""
    ramp_tokens: Count = 0
    """Tokens of the stage over which its steps grow; they are spread evenly over the sizes."""
    micro_batch: Size = 1
    """Samples in one forward pass of one data-parallel rank."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the cosine or the line."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape of the learning rate after warm-up, over this stage and those after it up to one whose grow.schedule is
    restart. wsd: constant, then a line over the last `decay` of it (Hu et al. 2024)."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the schedule over which wsd decays."""
    warmup_tokens: Count = 0
    """Tokens over which the learning rate of what this stage begins with, or adds to its parent, rises linearly."""
    warmup: Fraction = 0.0
    """Instead of `warmup_tokens`: as a share of the stage's tokens."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices and embeddings (never of norms)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's decay of the first and second moment, per step."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    mup: Mup = Mup()
    """Rates that transfer from a narrow model to a wide one."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    dropout: Fraction = 0.0
    """Probability with which a channel of a token is dropped, after the embedding and after the attention and the MLP
    of each layer; never in validation or a growth certificate. A function of the seed, the stage, the step and the
    sample's place in the global batch, the same under every layout."""
    attention_dropout: Fraction = 0.0
    """The same of an attention weight. On CUDA, where attention is one kernel, only the probability is the same under
    another layout."""
    layer_drop: Annotated[LayerDrop, BeforeValidator(_as_mapping)] = LayerDrop()
    """Blocks that are left out, so that fewer are enough afterwards; never in validation or a growth certificate. A
    function of the seed, the stage, the step and the micro-batch's place in the global batch, the same under every
    layout with this `micro_batch`."""
    memory: Derived = 0
    """Tokens before a sample that its attention sees too (Dai et al. 2019, "Transformer-XL"): each layer remembers what
    its input was there, without a gradient. Row i of every global batch then goes on where row i of the one before has
    ended, and `data.window` does not apply. 0: none."""
    eval_memory: Derived = 0
    """The same in validation, where it may be longer; 0 or absent: `memory`. A resume may change it."""
    lora: Lora = Lora()
    """Train low-rank adapters of the model that the stage begins with."""
    average: Average = Average()
    """Keep a moving average of the weights."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the model; master weights, moments and gradient accumulation are fp32 always."""
    deterministic: bool = False
    """On GPUs too the same bits each time, after a resume as well, at some cost of speed; a resume may change it."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, those of the attention core, or whole layers; never those
    of an attention that `distill` compares, nor of what is above it."""
    recompute_layers: Positive = 1
    """Layers in one recomputed unit when `recompute` is full."""
    compile: bool | None = None
    """Whether what lies between matrix products (norms, rotation, activations, the loss) and the update of several
    generations are compiled kernels: half of the memory traffic. null: on a CUDA device. It needs Triton there, and g++
    on a CPU; the first steps on a new shape take longer."""
    eval_interval: Positive = 100
    """Steps between validations; there is one at each end of the stage as well."""
    eval_bytes: Positive = 1 << 20
    """Bytes of held-out text in a validation."""

    def batch_at(self, tokens: int) -> int:
        """Samples in the optimizer step that begins when the stage has trained on so many tokens.

        A function of what was trained on alone, whatever the layout (as Megatron-LM's --rampup-batch-size).
        """
        if tokens >= self.ramp_tokens or not self.ramp_from:
            return self.global_batch
        by = self.ramp_by or self.ramp_from
        return self.ramp_from + by * (tokens * (self.global_batch - self.ramp_from) // by // self.ramp_tokens)

    def steps(self) -> int:
        """Optimizer steps in which a stage trains on `tokens`."""
        done = steps = 0
        end = min(self.ramp_tokens, self.tokens) if self.ramp_from else 0
        by, grows = self.ramp_by or self.ramp_from, self.global_batch
        while done < end:  # counts all steps of one size at a time
            size = self.batch_at(done)
            larger = -(-(size - self.ramp_from + by) * self.ramp_tokens // (grows - self.ramp_from))
            count = max(1, -(-(min(larger, end) - done) // (size * self.seq_len)))
            done += count * size * self.seq_len
            steps += count
        return steps + -(-max(0, self.tokens - done) // (self.global_batch * self.seq_len))

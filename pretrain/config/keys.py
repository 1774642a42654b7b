"""The keys of a curriculum: frozen dataclasses, one for each section, and the stage that holds them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from growth import Architecture
from growth.family import family
from pretrain.config.kinds import (
    Candidates,
    Count,
    Derived,
    FamilyName,
    Fraction,
    Layers,
    Operator,
    Positive,
    Ranks,
    Size,
    Tokens,
)


class Section:
    """A section of a curriculum. An unknown key is an error, never ignored; so is a number that is infinite or NaN."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Data(Section):
    """Where the text is and how it is drawn."""

    corpus: str
    """Folder of a prepared corpus: tokens and the tokenizer that encoded them, as tools/prepare_data.py makes it."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the documents that are never trained on."""
    window: Size = 1024
    """Samples among which the order is shuffled; documents are permuted in every epoch whatever this is."""
    mask_rate: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Of masked language models: share of the tokens that are predicted."""
    mask_rate_end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of these: the share at the end of the stage, reached linearly; 0: it stays as it is."""
    whole_words: bool = True
    """Of these: mask all pieces of a word or none."""
    pairs: Literal["nsp", "sop"] = "nsp"
    """Of these: nsp takes half of the second segments from another document, sop swaps half of the pairs."""


@dataclass(frozen=True)
class Model(Section):
    """The target shape of a stage; what grows is inferred from its difference to the stage before."""

    vocab: Size
    """Rows of the embedding, in tokens: the first pieces of the tokenizer by merge age."""
    hidden: Size
    """Width of the residual stream."""
    layers: Layers
    """Transformer layers."""
    heads: Size
    """Query heads."""
    ffn: Size
    """Width of the MLP."""
    family: FamilyName = "llama2"
    """The architecture; one for a whole curriculum."""
    positions: Derived = 0
    """Where the family learns positions: how many there are, the longest sample; 0 or absent: train.seq_len."""
    kv_heads: Derived = 0
    """Key and value heads (GQA); 0 or absent: as many as `heads`."""
    head_dim: Derived = 0
    """Width of a head; 0 or absent: hidden / heads."""
    norm_eps: Annotated[float, Field(ge=0)] = 0.0
    """Epsilon of the norms; 0 or absent: the family's own. Only the first stage reads it: growth carries the value on,
    and may change it."""
    rope_theta: Annotated[float, Field(gt=0)] = 1e4
    """Where the family has rotary embeddings: base of their frequencies. Only the first stage reads it: growth carries
    the value on, and may change it."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of new weights; residual branches start at this / sqrt(2 * layers)."""

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if not self.head_dim and self.hidden % self.heads == 0:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if not self.norm_eps:
            object.__setattr__(self, "norm_eps", family(self.family).scalars["norm_eps"]({}))

    def architecture(self) -> Architecture:
        """This shape for growth. Its scalars are those of a first stage: a growth plan replaces them."""
        table = family(self.family)
        sizes = {axis: table.fixed.get(axis) or getattr(self, axis) for axis in ("layers", *table.axes)}
        scalars = {name: getattr(self, name) for name in ("norm_eps", "rope_theta") if name in table.scalars}
        return Architecture(self.family, sizes, scalars)


@dataclass(frozen=True)
class Parallel(Section):
    """How a stage is spread over ranks; the world is tp * pp * dp."""

    tp: Ranks = 1
    """Tensor-parallel ranks."""
    pp: Ranks = 1
    """Pipeline-parallel ranks."""
    dp: Ranks | None = None
    """Data-parallel ranks; absent: the number of ranks started / (tp * pp)."""
    sequence_parallel: bool = False
    """Split norms and residual along the sequence over the tensor-parallel ranks; without effect at tp 1."""
    pipeline: None | tuple[Count, ...] | str = None  # noqa: RUF036, a command line reads None before any text
    """Layers of each pipeline rank, as a list ([1, 3]) or as a Megatron-core layout ("Et|tttL"); absent: balanced, the
    first ranks get the remainder."""


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
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    dropout: Fraction = 0.0
    """Probability with which a channel of a token is dropped, after the embedding and after the attention and the MLP
    of each layer; never in validation or a growth certificate. A function of the seed, the stage, the step and the
    sample's place in the global batch, the same under every layout."""
    attention_dropout: Fraction = 0.0
    """The same of an attention weight. On CUDA, where attention is one kernel, only the probability is the same under
    another layout."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the model; master weights, moments and gradient accumulation are fp32 always."""
    deterministic: bool = False
    """On GPUs too the same bits each time, after a resume as well, at some cost of speed; a resume may change it."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, those of the attention core, or whole layers."""
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


@dataclass(frozen=True)
class Trial(Section):
    """Ways to grow of which each is tried, and the one taken whose held-out loss is the smallest some steps later (LAG,
    Karp et al. 2024). All start from the same checkpoint and see the same data."""

    candidates: Candidates = ()
    """What each has instead of the operators and moments of `grow`: [{layers: stack}, {layers: identity}], say; empty:
    nothing is tried."""
    steps: Positive = 100
    """Optimizer steps of each."""


@dataclass(frozen=True)
class Grow(Section):
    """What the growth event at which this stage starts does to each axis that grows; unused by the first stage.

    An operator by name, or with options: {operator: NAME, OPTION: VALUE}. See growth/operators. Of dense, the option
    `factors` names a file of tools/learn_growth.py.
    """

    OPERATORS: ClassVar = ("layers", "hidden", "heads", "ffn", "vocab", "head_dim", "positions", "moments")

    layers: Operator = "identity"
    """identity: new layers whose output projections are zero, spread between the old ones; keeps the function."""
    hidden: Operator = "zero"
    """zero: new channels that nothing writes yet; keeps the function."""
    heads: Operator = "zero"
    """zero: new heads whose output is not used yet; keeps the function."""
    ffn: Operator = "zero"
    """zero: new neurons whose output is not used yet; keeps the function."""
    vocab: Operator = "pieces"
    """pieces (the mean of the rows that wrote the new token before: best of these in bits per byte), mean (of all old
    rows), zero or random."""
    head_dim: Operator = "default"
    """rotary where the family has rotary embeddings (whole factors; rotary_table: any), else zero; all keep the
    function."""
    positions: Operator = "random"
    """random: new positions as in a fresh model; keeps the function of samples that are no longer than before."""
    moments: Literal["default", "transform", "copy", "reset"] = "default"
    """Adam's moments of what is old, and of what is made of it: transform (as their gradients), copy, or reset (zero,
    and all parts count as new from then on); default: transform what is old, reset what is new (level with the best of
    these in configs/comparisons)."""
    schedule: Literal["continue", "rewind", "rewarm", "restart"] = "rewarm"
    """What the event that begins the stage does to the learning rate, for good. rewarm: old parts go on at the rate
    they have, what is new has the schedule from its beginning. continue: what is new joins the old parts at their
    rate. rewind: likewise, after the schedule is set back by `rewind`. restart: all has it from its beginning.
    Measured in configs/comparisons with one event half-way: rewind ends 0.2 % below rewarm, continue 0.4 % and restart
    1.8 % above it. rewarm is the default as the best that leaves what has been learned as it was, however many events
    there are; layers that come inside a stage (patches) always join."""
    rewind: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the way along the schedule that a rewind undoes."""
    new_lr: Annotated[float, Field(ge=0)] = 1.0
    """Multiple of the learning rate that what is new has, now and in later stages."""
    new_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of what is new, now and in later stages; absent: train.weight_decay."""
    old_lr: Annotated[float, Field(ge=0)] = 1.0
    """Multiple of the learning rate that everything older than this stage has during it; 0 freezes it."""
    clip: Literal["keep", "scale"] = "keep"
    """What the event does to train.clip, for good. keep: nothing. scale: multiply it by what the event multiplied the
    gradient's norm by, on the same batch of held-out text, so that as much is clipped as before."""
    trial: Trial = Trial()
    """Choose the operators by trial."""
    condense: bool = False
    """Let all generations but the newest two learn as one from here on, at their mean rate by tokens."""

    def policy(self) -> dict[str, Any]:
        """The policy that growth.between takes: operators by key, and what moments become."""
        chosen = {key: getattr(self, key) for key in self.OPERATORS if getattr(self, key) != "default"}
        if "moments" in chosen:  # for growth, which takes this word to mean what is old only
            chosen["moments"] = {"old": self.moments, "new": self.moments}
        return chosen

    def tried(self, candidate: Mapping[str, Any]) -> "Grow":
        """The same settings with the operators of one candidate of the trial."""
        return replace(self, **candidate)


@dataclass(frozen=True)
class Patch(Section):
    """One layer more, inside a stage."""

    at: Annotated[float, Field(gt=0, lt=1)]
    """When, as a share of the stage's tokens; at the first step that has them."""
    index: Count
    """Position of the new layer in the resulting list, as in Python's list.insert."""
    source: Literal["clone", "random"] = "clone"
    """What it starts as: a copy of the layer before it (at 0: of the first), or a fresh layer."""


@dataclass(frozen=True)
class Checkpoint(Section):
    """When checkpoints are written."""

    interval: Positive = 1000
    """Steps between checkpoints; the end of a stage always writes one."""
    keep: Positive = 2
    """Newest checkpoints kept in the stage's folder."""
    keep_every: Count = 0
    """Checkpoints whose step this divides are kept for ever; 0: none of them."""


@dataclass(frozen=True)
class Guard(Section):
    """What a stage does when something goes wrong. A resume may change all of it."""

    hang: Annotated[float, Field(ge=0, le=5400)] = 1800.0
    """Seconds without a step after which every rank writes the stacks of its threads to the stage's folder and ends, as
    if it had crashed; four times as many in anything else (a start, a growth event, a checkpoint). 0: never."""
    loss_spike: Annotated[float, Field(gt=1)] | None = None
    """A step whose loss is more than this many times the median of the last `window` is skipped: no update is made.
    Absent: only one whose loss or gradient is not finite."""
    grad_spike: Annotated[float, Field(gt=1)] | None = None
    """The same for the norm of the gradient, before clipping."""
    window: Positive = 64
    """Steps whose median is taken; before there are so many, no spike is one."""
    patience: Positive = 5
    """Skipped steps in a row after which the stage goes back to its last good checkpoint, and on with later text."""
    rollbacks: Count = 3
    """How often a stage goes back, before it ends as with an error of the user: it would diverge again."""
    recheck: Count = 0
    """Every so many steps the forward and backward passes are made twice, and a gradient that does not come out the
    same, bit for bit, is not used; the rank and its host are named, and a host that did so twice is left. On GPUs it
    needs train.deterministic. 0: never."""


@dataclass(frozen=True)
class Log(Section):
    """Where metrics go, besides metrics.jsonl in the stage's folder."""

    interval: Positive = 10
    """Steps between records."""
    wandb: bool = True
    """Weights & Biases: offline unless the user is logged in."""
    tensorboard: bool = False
    """TensorBoard event files in the stage's folder."""


@dataclass(frozen=True)
class Stage(Section):
    """One stage, with every default filled in."""

    name: str
    """Name of the stage's folder."""
    seed: int
    """Seed of the whole curriculum: initial and new weights, order of the data, dropout."""
    data: Data
    model: Model
    parallel: Parallel
    train: Train
    grow: Grow
    checkpoint: Checkpoint
    guard: Guard
    log: Log
    from_scratch: bool = False
    """Start from nothing and not from the stage before, to compare with."""
    patches: tuple[Patch, ...] = ()
    """Layers added inside the stage (Progressive Layer Increase), in order; model.layers is what it begins with."""

    def __post_init__(self) -> None:
        if not self.model.positions and "positions" in family(self.model.family).axes:
            model = replace(self.model, positions=self.train.seq_len)
            object.__setattr__(self, "model", model)

    def at_end(self) -> Model:
        """The shape after all patches."""
        return replace(self.model, layers=self.model.layers + len(self.patches))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings: what a checkpoint and config.yaml hold."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

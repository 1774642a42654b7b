"""The keys of a curriculum: frozen dataclasses, one for each section, and the stage that holds them."""

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from growth import Architecture
from growth.family import DISTANCES, family
from pretrain.config import levels, orders
from pretrain.config.distill_keys import Distill
from pretrain.config.grow_keys import Grow, Patch
from pretrain.config.kinds import MOST_LAYERS, Count, Derived, FamilyName, Layers, Order, Positive, Ranks, Size
from pretrain.config.mixtures import CorpusShare
from pretrain.config.section import Section
from pretrain.config.span_keys import Span
from pretrain.config.train_keys import Train


@dataclass(frozen=True)
class Data(Section):
    """Where the text is and how it is drawn."""

    corpus: str = ""
    """Folder of a prepared corpus: tokens and the tokenizer that encoded them, as tools/prepare_data.py makes it; or
    the URL to which tools/publish_corpus.py copied one."""
    corpora: tuple[CorpusShare, ...] = ()
    """In its place: several of them, each with its share (a weight, tokens or epochs). See
    pretrain/config/mixtures.py."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the documents that are never trained on."""
    window: Size = 1024
    """Samples among which the order is shuffled; documents are permuted in every epoch whatever this is."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """Of causal language models: concatenate cuts samples out of documents laid end to end; best_fit puts whole
    documents together where they fit (Ding et al. 2024), cuts those alone that are longer than a sample, and pads the
    rest, which counts as tokens of the stage."""
    reset_attention: bool = False
    """Of causal language models: a document's tokens see, and count their positions from, that document alone, in
    training, validation and growth certificates. The token that ends a document opens the next one."""
    mask_rate: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Of masked language models: share of the tokens that are predicted."""
    mask_rate_end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of these: the share at the end of the stage, reached linearly; 0: it stays as it is."""
    whole_words: bool = True
    """Of these: mask all pieces of a word or none."""
    pairs: Literal["nsp", "sop"] = "nsp"
    """Of these: nsp takes half of the second segments from another document, sop swaps half of the pairs."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder of each corpus."""
        return (self.corpus,) if self.corpus else tuple(source.corpus for source in self.corpora)

    def only(self, corpus: str) -> "Data":
        """The same, of this corpus alone."""
        return replace(self, corpus=corpus, corpora=())


@dataclass(frozen=True)
class Model(Section):
    """The target shape of a stage; what grows is inferred from its difference to the stage before."""

    vocab: Size
    """Rows of the embedding, in tokens: the first pieces of the tokenizer by merge age."""
    hidden: Size
    """Width of the residual stream."""
    heads: Size
    """Query heads."""
    ffn: Size
    """Width of the MLP."""
    layers: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 0
    """Transformer layers, each as often as it is called (see `share`); 0 or absent: `order` spells the sublayers."""
    family: FamilyName = "llama2"
    """The architecture; one for a whole curriculum."""
    positions: Derived = 0
    """Where the family learns positions: how many there are, the longest sample; 0 or absent: train.seq_len."""
    kv_heads: Derived = 0
    """Key and value heads (GQA); 0 or absent: as many as `heads`."""
    head_dim: Derived = 0
    """Width of a head; 0 or absent: hidden / heads."""
    sinusoid: Derived = 0
    """Where the family attends by distance: channels of the embedding of a distance; 0 or absent: `hidden`. It does not
    grow: where hidden will, give it for all stages."""
    norm_eps: Annotated[float, Field(ge=0)] = 0.0
    """Epsilon of the norms; 0 or absent: the family's own. Only the first stage reads it: growth carries the value on,
    and may change it."""
    rope_theta: Annotated[float, Field(ge=0)] = 0.0
    """Where the family has rotary embeddings: base of their frequencies; 0 or absent: the family's own. Only the first
    stage reads it: growth carries the value on, and may change it."""
    order: Order = None
    """How attention and MLPs follow each other; absent: by turns, as usual. {sandwich: k} (Press et al. 2019) and
    {par: p} (Mandava et al. 2020) order the 2 x `layers` sublayers of as many layers; a word of s (attention) and f
    (MLP), such as ssfsff, is the order itself, without `layers`; the empty word is an embedding and a head alone.
    See pretrain/config/orders.py."""
    levels: tuple[Annotated[int, Field(ge=0, le=orders.MOST)], ...] = ()
    """Where the family compresses its text, in place of `layers`: how many blocks come before, between and behind its
    compressors and then its expanders, such as [1, 2, 2, 2, 2, 2, 1]. See pretrain/config/levels.py."""
    share: Layers = 1
    """How many layers in a row have the same weights: one layer that is called so often. A later stage with a smaller
    number unties them."""
    span: Span = field(default_factory=Span)
    """Heads that learn how far they see."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of new weights; residual branches start at this / sqrt(2 * layers)."""

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if not self.head_dim and self.hidden % self.heads == 0:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        if not self.sinusoid and DISTANCES in family(self.family).axes:
            object.__setattr__(self, "sinusoid", self.hidden)
        for scalar in ("norm_eps", "rope_theta"):
            if not getattr(self, scalar):
                own = family(self.family).scalars.get(scalar, lambda sizes: 1e4)
                object.__setattr__(self, scalar, own({}))

    @property
    def depth(self) -> int:
        """The number of blocks: of the steps of a forward pass, each of which calls a layer."""
        if self.levels:
            return sum(self.levels) + len(self.levels) - 1
        return self.layers if self.order is None else len(self.letters)

    @property
    def letters(self) -> str:
        """Where there is an order: its sublayers."""
        return orders.letters(self.order, self.layers) if self.order is not None else ""

    def architecture(self) -> Architecture:
        """This shape for growth. Its scalars are those of a first stage: a growth plan replaces them."""
        table = family(self.family)
        sizes = {axis: table.fixed.get(axis) or getattr(self, axis) for axis in table.axes}
        sizes["layers"] = self.depth // self.share
        scalars = {name: getattr(self, name) for name in ("norm_eps", "rope_theta") if name in table.scalars}
        kinds = tuple(orders.KINDS[letter] for letter in self.letters) or levels.kinds(table, self.levels)
        calls = tuple(block // self.share for block in range(self.depth))
        return Architecture(self.family, sizes, scalars, kinds=kinds, calls=calls, span=self.span.spans())


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
    """Layers (of an order: sublayers) of each pipeline rank, as a list ([1, 3]) or as a Megatron-core layout
    ("Et|tttL"); absent: balanced by work, the first ranks get the remainder."""


@dataclass(frozen=True)
class Checkpoint(Section):
    """When checkpoints are written."""

    interval: Positive = 1000
    """Steps between checkpoints; the end of a stage always writes one."""
    keep: Positive = 2
    """Newest checkpoints kept in the stage's folder."""
    keep_every: Count = 0
    """Checkpoints whose step this divides are kept for ever; 0: none of them."""
    mirror: str = ""
    """URL (s3://bucket/runs) below which the stage's checkpoints are mirrored, in RUN/STAGE, and from where a machine
    that has none of them brings them back; empty: nowhere. See docs/running.md."""


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
class Eval(Section):
    """Tasks by which checkpoints are judged, in a process or a job beside training, which does not wait for it. A
    resume may change all of it."""

    tasks: tuple[str, ...] = ()
    """Names of lm-eval, which the extra `eval` installs, and YAML files in its format; none: nothing is judged."""
    interval: Count = 0
    """Steps between checkpoints that are judged, a multiple of checkpoint.interval; 0: only the one with which a growth
    event begins the stage, and its last."""
    limit: Derived = 0
    """Samples of each task, the first ones; 0: all."""


@dataclass(frozen=True)
class Texts(Section):
    """What a causal model writes while it is trained, into samples.jsonl in the stage's folder."""

    prompt: str = ""
    """What it goes on from; empty: it writes nothing."""
    interval: Positive = 1
    """Validations from one text to the next; the end of a stage always has one."""
    tokens: Positive = 32
    """Tokens of a text at most, each of which takes a forward pass of a micro-batch."""


@dataclass(frozen=True)
class Log(Section):
    """Where metrics go, besides metrics.jsonl in the stage's folder."""

    interval: Positive = 10
    """Steps between records."""
    wandb: bool = True
    """Weights & Biases: offline unless the user is logged in."""
    tensorboard: bool = False
    """TensorBoard event files in the stage's folder."""
    samples: Texts = Texts()
    """Text that the model writes at validations."""


@dataclass(frozen=True)
class Yours(Section):
    """A finished model that is the first stage of a curriculum, and is not trained: what is grown is what you have.
    tools/yours.py does what it says, and slurm/curriculum.sh calls it."""

    model: str
    """Folder of the model in Hugging Face's format. The first stage in the file has its shape."""
    text: tuple[str, ...] = ()
    """Files of text that become data.corpus, in the model's own tokens, where that is not there; none: it is there."""
    export: str = ""
    """Folder for the model of the last stage, in Hugging Face's format, once that is finished; empty: none."""


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
    eval: Eval = field(default_factory=Eval)
    distill: Distill = field(default_factory=Distill)
    """A trained model that the stage learns from."""
    from_scratch: bool = False
    """Start from nothing and not from the stage before, to compare with."""
    patches: tuple[Patch, ...] = ()
    """Layers added inside the stage (Progressive Layer Increase), in order; model.layers is what it begins with."""

    def __post_init__(self) -> None:
        if not self.model.positions and "positions" in family(self.model.family).axes:
            model = replace(self.model, positions=self.train.seq_len)
            object.__setattr__(self, "model", model)

    def architecture(self) -> Architecture:
        """The model that it begins with, for growth, with the adapters that it trains."""
        return self.model.architecture().with_adapters(self.train.lora.adapters())

    def grown(self) -> Architecture:
        """The same after all patches."""
        return self.at_end().architecture().with_adapters(self.train.lora.adapters())

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

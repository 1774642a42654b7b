"""What the parts of a manifest are made of: types to check it by before anything in it is used.

A key that is not named here is left alone, except in a type that becomes the arguments of a constructor (CLOSED).
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from pretrain.runtime.documents import CLOSED, Count, Number, Object, Positive, Text

FILE_NAME = r"^(weight|exp_avg|exp_avg_sq|average|memory)-[0-9]{5,12}\.safetensors$"

Hash = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{32}$")]
FileName = Annotated[str, Field(strict=True, pattern=FILE_NAME)]
Whole = Annotated[int, Field(strict=True, ge=-1, le=1 << 62)]
Tokens = Annotated[int, Field(strict=True, ge=0, le=10**31)]  # a budget may be one that no run reaches
Kind = Literal["average", "memory", "weight", "exp_avg", "exp_avg_sq"]
Run = Annotated[list[Count], Field(min_length=2, max_length=2)]
Numbers = list[Number]
Seconds = Annotated[Number, Field(ge=0, le=1e12)]


class Adapters(TypedDict):
    """Low-rank adapters, as growth.adapters.Adapters.to_json writes them."""

    rank: Count
    alpha: Number
    on: list[Text]


class Span(TypedDict):
    """Spans of heads, as growth.span.Span.to_json writes them."""

    max: Count
    ramp: Count


class Shape(TypedDict):
    """An architecture, as growth.Architecture.to_json writes it."""

    family: Text
    sizes: dict[Text, Count]
    scalars: dict[Text, Number]
    rope_frequencies: NotRequired[Numbers]
    kinds: NotRequired[list[Text]]
    calls: NotRequired[list[Count]]
    adapters: NotRequired[Adapters]
    span: NotRequired[Span]


@with_config(CLOSED)
class Pace(TypedDict):
    """The fields of pretrain.schedule.curve.Pace."""

    since: Count
    position: Number
    until: Tokens
    warmup_from: NotRequired[Count]
    warmup_tokens: NotRequired[Tokens]
    factor: NotRequired[Number]
    weight_decay: NotRequired[Number | None]


@with_config(CLOSED)
class Birth(TypedDict):
    """The fields of pretrain.schedule.curve.Birth."""

    birth_tokens: Count
    stage: Text
    adam_step: Count
    birth_step: NotRequired[Count]
    pace: NotRequired[Pace | None]


class Generations(TypedDict):
    """The fields of growth.Generations, and a birth for each generation."""

    births: NotRequired[dict[Text, list[Run]]]
    count: NotRequired[Count]
    each: NotRequired[list[Birth]]


@with_config(CLOSED)
class Health(TypedDict):
    """The fields of pretrain.guard.health.Health."""

    losses: NotRequired[Numbers]
    grad_norms: NotRequired[Numbers]
    skipped: NotRequired[Count]
    rollbacks: NotRequired[Count]
    good: NotRequired[Count]


@with_config(CLOSED)
class Progress(TypedDict):
    """The fields of pretrain.schedule.progress.Progress, and the health of the run."""

    step: NotRequired[Count]
    stage_tokens: NotRequired[Count]
    tokens: NotRequired[Count]
    flops: NotRequired[Annotated[Number, Field(ge=0, le=1e60)]]
    seconds: NotRequired[Seconds]
    held_out: NotRequired[Numbers]
    health: NotRequired[Health]


LanePlace = Annotated[list[Count], Field(min_length=4, max_length=4)]
"""A place in the text, as pretrain.data.stream.lanes.LaneStream gives it."""


class CorpusCursor(TypedDict):
    """A cursor of one corpus, as pretrain.data.stream.windows.WindowedStream or LaneStream gives it."""

    epoch: NotRequired[Count]
    document: NotRequired[Count]
    token: NotRequired[Count]
    byte: NotRequired[Count]
    sentence: NotRequired[Count]
    drawn: NotRequired[Count]
    next: NotRequired[dict[Text, Count] | None]
    corpus: NotRequired[Text]
    tokenizer: NotRequired[Text]
    lanes: NotRequired[list[LanePlace]]
    waiting: NotRequired[list[LanePlace]]


class SourceCursor(CorpusCursor):
    """That of one of several, as pretrain.data.stream.mixture.Source gives it."""

    weight: NotRequired[Annotated[Number, Field(ge=0)]]
    turns: NotRequired[Count]
    samples: NotRequired[Count]
    tokens: NotRequired[Count]


class Cursor(CorpusCursor):
    """A cursor of one corpus, or, as pretrain.data.stream.mixture.Mixture or MixedLanes gives it, of several."""

    stage: NotRequired[Text]
    sources: NotRequired[Annotated[list[SourceCursor], Field(min_length=1)]]
    rows: NotRequired[list[Count]]
    queue: NotRequired[list[Count]]


class Vocabulary(TypedDict):
    """What is known of the vocabulary of an imported model."""

    order: Literal["merge age", "identity"]
    tokenizer: Text | None
    reason: Text | None


class Imported(TypedDict):
    """The import of a model, in place of a growth event."""

    name: Text
    config: Object
    vocabulary: Vocabulary
    shard_order: NotRequired[Literal["modules", "sorted"]]


@with_config(CLOSED)
class Certificate(TypedDict):
    """A certificate, as growth.certificate.Certificate.to_json writes it."""

    operators: list[Text]
    claims: bool
    error: Number
    tolerance: Number
    loss_before: Number
    loss_after: Number
    dead: dict[Text, Run]
    locked: dict[Text, Annotated[Numbers, Field(min_length=2, max_length=2)]]
    approximate: list[Text]
    bits_per_byte_before: NotRequired[Number | None]
    bits_per_byte_after: NotRequired[Number | None]
    grad_norm_before: NotRequired[Number | None]
    grad_norm_after: NotRequired[Number | None]
    memory: NotRequired[Text]
    preserved: bool
    dead_share: Number


IntRuns = list[list[Annotated[list[Whole], Field(min_length=3, max_length=3)]]]
"""Columns of integers, each run-length encoded as [first, count, step]."""
NumberRuns = list[list[Annotated[list[Number | bool], Field(min_length=2, max_length=2)]]]
"""Columns of numbers, each run-length encoded as [value, count]."""


class Matrix(TypedDict):
    """A packed matrix, as growth.encoding.encode_matrix writes it."""

    shape: Annotated[list[Count], Field(min_length=2, max_length=2)]
    dtype: Literal["<f4", "<f8"]
    base64: Text


class AxisMap(TypedDict):
    """A map of an axis, as growth.maps.AxisMap.to_json writes it."""

    axis: Text
    old: Count
    source: IntRuns
    weight: dict[Text, NumberRuns]
    gradient: dict[Text, NumberRuns]
    born: NumberRuns
    zero: list[Text]
    mixes: dict[Text, Text | Matrix | NumberRuns]
    mix: IntRuns
    noise: Number
    ahead: NumberRuns


class LayerMap(TypedDict):
    """A map of layers, as growth.maps.LayerMap.to_json writes it."""

    old: Count
    source: IntRuns
    coefficient: NumberRuns
    zero_branch: NumberRuns
    born: NumberRuns
    noise: NumberRuns


class Step(TypedDict):
    """A step of a plan, as growth.step.Step.to_json writes it."""

    new: Shape
    operators: list[Text]
    preserves: bool
    layers: LayerMap | None
    axes: list[AxisMap]
    moments: Annotated[list[Text], Field(min_length=2, max_length=2)]
    approximate: list[Text]


class Mup(TypedDict):
    """A base model, as growth.mup.Mup.to_json writes it."""

    hidden: Positive
    heads: Count
    ffn: Count
    layers: Count


class Plan(TypedDict):
    """A plan of growth, as growth.Plan.to_json writes it."""

    format: Count
    old: Shape | None
    new: Shape
    seed: Annotated[int, Field(strict=True)]
    init_std: Number
    steps: list[Step]
    mup: NotRequired[Mup]


class Averaged(TypedDict):
    """By which rule the weights of which checkpoints (hashes of their manifests) were averaged."""

    rule: Text
    of: list[Text]


class Event(TypedDict):
    """A growth event, an average of weights (whose plan changes nothing), or the import that a lineage of models began
    with."""

    stage: Text
    plan: NotRequired[Plan]
    certificate: NotRequired[Certificate | None]
    seconds: NotRequired[Seconds]
    clip_scale: NotRequired[Number]
    imported: NotRequired[Imported]
    averaged: NotRequired[Averaged]


class Config(TypedDict):
    """The parts of the resolved configuration that are read before it is checked as a configuration."""

    data: NotRequired[Object]
    model: NotRequired[Object]
    parallel: NotRequired[Object]
    train: NotRequired[Object]
    distill: NotRequired[Object]


class Parent(TypedDict):
    """The checkpoint that a stage started from."""

    path: Annotated[Text, Field(pattern=r"^[^\x00]*$", max_length=4096)]
    hash: Text


class Description(TypedDict):
    """What a run tells about itself."""

    architecture: Shape
    stage: Text
    events: list[Event]
    generations: Generations
    cursor: Cursor
    progress: Progress
    config: Config
    parent: Parent | None


class Tensor(TypedDict):
    """The shape of a tensor and its boxes, [file, offset, start, stop], by kind."""

    shape: Annotated[list[Positive], Field(max_length=8)]
    boxes: dict[Kind, list[Annotated[list[Any], Field(min_length=4, max_length=4)]]]


class File(TypedDict):
    """The size of a file and the hashes of its blocks."""

    size: Positive
    blocks: list[Hash]


class Manifest(Description):
    """All of manifest.json except its hash."""

    format_version: Positive
    step: Count
    tensors: dict[Text, Tensor]
    files: dict[FileName, File]

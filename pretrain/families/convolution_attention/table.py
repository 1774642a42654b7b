"""Convolution Attention: a causal language model that makes few wide units of many narrow tokens, attends there, and
makes tokens of them again.

A compressor is a convolution whose kernel and stride are 4: it makes of four units of the stream one that is twice as
wide. An expander is its transpose. With three of each, at the deepest level a unit stands for 64 tokens and is 8 x
hidden wide. At every level there are blocks of attention and an MLP, as many times as wide as the stream is, with the
same number of heads. The model predicts the token that is one of its longest units ahead, 64 places: behind the last
compressor a place has seen all tokens of its own unit, and none behind that.

The blocks have an RMSNorm before each branch, a gelu and no biases: padding, which is embedded as zero, stays zero in
them, and new channels of any number keep the function (a LayerNorm would need the mean over all parts of a wide unit).
Its names are those of the module that goes with an exported model.
"""

from growth.family import Dim, Family, Stream, TensorSpec
from pretrain.families.common.rows import GAIN, READS, WRITES, of

TAPS, DEEPEST = 4, 3
"""Units that a compressor makes one of; how many compressors a model has at most."""
EMBEDDING, POSITIONS, NORM, HEAD = "embedding.weight", "positions.weight", "norm.weight", "head.weight"
LAYER = "layers.{layer}."
WIDTHS = tuple(f"parts_{level}" for level in range(DEEPEST + 1))
"""The axis of each level by which it is wider than the first."""
BLOCKS = ("layer", *(f"layer_{level}" for level in range(1, DEEPEST + 1)))
COMPRESSORS = tuple(f"compress_{level}" for level in range(1, DEEPEST + 1))
EXPANDERS = tuple(f"expand_{level}" for level in range(1, DEEPEST + 1))
"""The kinds of layers: blocks by level, and what leads to a level from the one before it, and back."""
STREAMS = tuple(Stream(2**level, TAPS**level) for level in range(DEEPEST + 1))


def wide(level: int, *axes: str, then: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Axes of a dimension that is wider at deeper levels; `then` come behind the axis by which it is."""
    return (*axes, *((WIDTHS[level],) if level else ()), *then)


def _block(level: int) -> tuple[TensorSpec, ...]:
    hidden, ffn, heads = wide(level, "hidden"), wide(level, "ffn"), wide(level, "heads", then=("head_dim",))
    reads, writes, gain = Dim(hidden, "read"), Dim(hidden, "write"), Dim(hidden, "gain")
    return of(
        (BLOCKS[level],),
        TensorSpec(LAYER + "attention_norm.weight", (gain,), "one"),
        TensorSpec(LAYER + "attention.query.weight", (Dim(heads, "query"), reads), "normal"),
        TensorSpec(LAYER + "attention.key.weight", (Dim(heads, "key"), reads), "normal"),
        TensorSpec(LAYER + "attention.value.weight", (Dim(heads, "write"), reads), "normal"),
        TensorSpec(LAYER + "attention.out.weight", (writes, Dim(heads, "read")), "branch"),
        TensorSpec(LAYER + "mlp_norm.weight", (gain,), "one"),
        TensorSpec(LAYER + "mlp.up.weight", (Dim(ffn, "write"), reads), "normal"),
        TensorSpec(LAYER + "mlp.down.weight", (writes, Dim(ffn, "read")), "branch"),
    )


def _between(level: int) -> tuple[TensorSpec, ...]:
    narrow, broad = wide(level - 1, "hidden", then=("taps",)), wide(level, "hidden")
    return (
        *of(
            (COMPRESSORS[level - 1],),
            TensorSpec(LAYER + "compress.weight", (Dim(broad, "write"), Dim(narrow, "stream")), "normal"),
        ),
        *of(
            (EXPANDERS[level - 1],),
            TensorSpec(LAYER + "expand.weight", (Dim(narrow, "write"), Dim(broad, "stream")), "normal"),
        ),
    )


TABLE = Family(
    name="convolution_attention",
    tensors=(
        TensorSpec(EMBEDDING, (Dim(("vocab",), "read"), WRITES), "normal"),
        TensorSpec(POSITIONS, (Dim(("positions",), "read"), WRITES), "normal"),
        *(row for level in range(DEEPEST + 1) for row in _block(level)),
        *(row for level in range(1, DEEPEST + 1) for row in _between(level)),
        TensorSpec(NORM, (GAIN,), "one"),
        TensorSpec(HEAD, (Dim(("vocab",), "write"), READS), "normal"),
    ),
    kinds=(*BLOCKS, *COMPRESSORS, *EXPANDERS),
    axes=("vocab", "positions", "hidden", "heads", "head_dim", "ffn", "taps", *WIDTHS[1:]),
    fixed={"taps": TAPS, **{axis: 2**level for level, axis in enumerate(WIDTHS) if level}},
    streams={
        **{kind: (stream, stream) for kind, stream in zip(BLOCKS[1:], STREAMS[1:], strict=True)},
        **{kind: (STREAMS[level], STREAMS[level + 1]) for level, kind in enumerate(COMPRESSORS)},
        **{kind: (STREAMS[level + 1], STREAMS[level]) for level, kind in enumerate(EXPANDERS)},
    },
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
    },
    norm="rms",
)

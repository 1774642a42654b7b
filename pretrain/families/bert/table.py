"""BERT (Devlin et al., 2019) as Megatron-LM trains it (Shoeybi et al., 2019, section 3): pre-norm LayerNorm, gelu,
learned positions, biases, a masked-language head tied to the embedding and a sentence-order head.

Hugging Face's MegatronBertForPreTraining. The transform of the head has the hidden size, its rows meet the embedding's
columns in the decoder, so its axis is the hidden axis. A gelu stands between: hidden channels can be copied,
but not padded, without changing the function.
"""

from growth.family import Dim, Family, TensorSpec
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.families.common.rows import READS, WRITES, layer_norm, linear, of

LAYER = "bert.encoder.layer.{layer}."

TABLE = Family(
    name="bert",
    tensors=(
        TensorSpec("bert.embeddings.word_embeddings.weight", (Dim(("vocab",), "write"), WRITES), "normal"),
        TensorSpec("bert.embeddings.position_embeddings.weight", (Dim(("positions",), "read"), WRITES), "normal"),
        TensorSpec("bert.embeddings.token_type_embeddings.weight", (Dim(("types",), "read"), WRITES), "normal"),
        *of(
            ATTENTION,
            *layer_norm(LAYER + "attention.ln"),
            *linear(LAYER + "attention.self.query", Dim(("heads", "head_dim"), "query"), READS),
            *linear(LAYER + "attention.self.key", Dim(("heads", "head_dim"), "key"), READS),
            *linear(LAYER + "attention.self.value", Dim(("heads", "head_dim"), "write"), READS),
            *linear(LAYER + "attention.output.dense", WRITES, Dim(("heads", "head_dim"), "read"), "branch"),
        ),
        *of(
            MLP,
            *layer_norm(LAYER + "ln"),
            *linear(LAYER + "intermediate.dense", Dim(("ffn",), "write"), READS),
            *linear(LAYER + "output.dense", WRITES, Dim(("ffn",), "read"), "branch"),
        ),
        *layer_norm("bert.encoder.ln"),
        *linear("bert.pooler.dense", WRITES, READS),
        *linear("cls.predictions.transform.dense", WRITES, READS),
        *layer_norm(
            "cls.predictions.transform.LayerNorm", Dim(("hidden",), "last_gain"), Dim(("hidden",), "last_shift")
        ),
        TensorSpec("cls.predictions.bias", (Dim(("vocab",), "write"),), "zero"),
        *linear("cls.seq_relationship", Dim(("labels",), "write"), READS),
    ),
    kinds=KINDS,
    axes=("vocab", "positions", "types", "labels", "hidden", "heads", "head_dim", "ffn"),
    scalars={
        "norm_eps": lambda sizes: 1e-12,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
    },
    norm="layer",
    pads=False,
    fixed={"types": 2, "labels": 2},
)

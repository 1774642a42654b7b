"""Transformer-XL (Dai et al., 2019): attention by distance instead of positions, head tied to the embedding.

Of head n the score of query i and key j is softmax_scale times

    (q_i + u_n) . k_j  +  (q_i + v_n) . W_R,n r_(i - j)

with u, v and W_R of each layer its own (the paper's code calls that `untie_r`; its models on WikiText-103 share u and v
over layers, which would make two tensors that belong to no layer). To the algebra u and v are queries that come from no
token, and W_R makes keys that come from none: so whatever widens, copies or adds heads keeps the scores.

r_d is a sinusoid of the distance d, in the paper as wide as the residual stream. Here its width is an axis of its own,
`sinusoid`, which does not grow: sin(d / 10000 ** (2 c / D)) has other frequencies for another D, so that W_R of a wider
model would have to give by new sinusoids what it gave by the old ones. So a model that grows keeps the r that it began
with, which is exact for any width; what is fresh in a wider model reads r no worse.

Layers are pre-norm, with a norm behind the last, as the paper's code has it under `pre_lnorm`, and not post-norm as in
its published settings: a layer whose branches are zero is the identity only if nothing behind them norms the stream. As
there, queries, keys and values have no biases and the MLP has, with a relu. The embedding is neither scaled nor
adaptive. Names are those of the paper's code; its one matrix of queries, keys and values is three logical tensors.
"""

from collections.abc import Mapping

from growth.errors import GrowthError
from growth.family import DISTANCES, Dim, Family, TensorSpec
from pretrain.families.common.kinds import ATTENTION, KINDS, MLP
from pretrain.families.common.rows import READS, WRITES, layer_norm, linear, of

EMBEDDING, LAYER, FINAL_NORM = "transformer.word_emb.weight", "transformer.layers.{layer}.", "transformer.ln_f"
HEADS = ("heads", "head_dim")


def _check(sizes: Mapping[str, int]) -> None:
    if sizes[DISTANCES] % 2:
        raise GrowthError(
            f"transformer_xl: sinusoid = {sizes[DISTANCES]} is odd, but every frequency has a sine and a cosine"
        )


TABLE = Family(
    name="transformer_xl",
    tensors=(
        TensorSpec(EMBEDDING, (Dim(("vocab",), "write"), WRITES), "normal"),
        *of(
            ATTENTION,
            *layer_norm(LAYER + "dec_attn.layer_norm"),
            TensorSpec(LAYER + "dec_attn.q_net.weight", (Dim(HEADS, "query"), READS), "normal"),
            TensorSpec(LAYER + "dec_attn.k_net.weight", (Dim(HEADS, "key"), READS), "normal"),
            TensorSpec(LAYER + "dec_attn.v_net.weight", (Dim(HEADS, "write"), READS), "normal"),
            TensorSpec(LAYER + "dec_attn.r_w_bias", (Dim(HEADS, "query"),), "normal"),  # u
            TensorSpec(LAYER + "dec_attn.r_r_bias", (Dim(HEADS, "query"),), "normal"),  # v
            TensorSpec(LAYER + "dec_attn.r_net.weight", (Dim(HEADS, "key"), Dim((DISTANCES,), "read")), "normal"),
            TensorSpec(LAYER + "dec_attn.o_net.weight", (WRITES, Dim(HEADS, "read")), "branch"),
        ),
        *of(
            MLP,
            *layer_norm(LAYER + "pos_ff.layer_norm"),
            *linear(LAYER + "pos_ff.fc1", Dim(("ffn",), "write"), READS),
            *linear(LAYER + "pos_ff.fc2", WRITES, Dim(("ffn",), "read"), "branch"),
        ),
        *layer_norm(FINAL_NORM, Dim(("hidden",), "last_gain"), Dim(("hidden",), "last_shift")),
    ),
    kinds=KINDS,
    axes=("vocab", "hidden", "heads", "head_dim", "ffn", DISTANCES),
    scalars={
        "norm_eps": lambda sizes: 1e-5,
        "softmax_scale": lambda sizes: sizes["head_dim"] ** -0.5,
    },
    norm="layer",
    rule=_check,
)

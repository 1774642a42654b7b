"""Training FLOPs, counted exactly, and how much of a machine they use."""

from growth import Architecture

MLP_MATRICES = {"llama2": 3, "gpt2": 2, "bert": 2}
"""Matrices of a layer's MLP: gate, up and down, or in and out."""


def forward_flops_per_token(arch: Architecture, seq_len: int) -> dict[str, int]:
    """FLOPs of a forward pass per token, by part; a multiplication and an addition are two FLOPs.

    Counts every matrix product (a [m, k] x [k, n] product is 2 m k n) and nothing else: norms, activations, RoPE and
    softmax are below 1 %, and so is BERT's pooler, which sees one token of a sample. Attention is counted in full,
    seq_len keys for every query, as PaLM (Chowdhery et al. 2022, appendix B), Megatron-LM and torch.utils.flop_counter
    do, although a causal kernel may skip half of it: MFU then compares across papers. The embedding is a look-up, and
    has none.

    Raises ValueError for a family whose FLOPs nobody has written down.
    """
    if arch.family not in MLP_MATRICES:
        raise ValueError(f"the FLOPs of {arch.family} are not known")
    size = arch.sizes
    queries = size["heads"] * size["head_dim"]
    keys = size.get("kv_heads", size["heads"]) * size["head_dim"]
    layer = {
        "attention projections": 2 * size["hidden"] * (2 * queries + 2 * keys),  # q and o, k and v
        "attention scores": 2 * 2 * queries * seq_len,  # q k^T and its product with v
        "mlp": 2 * MLP_MATRICES[arch.family] * size["hidden"] * size["ffn"],
    }
    layers = {part: size["layers"] * flops for part, flops in layer.items()}
    transform = 2 * size["hidden"] ** 2 if arch.family == "bert" else 0
    return {**layers, "head": 2 * size["hidden"] * size["vocab"] + transform}


def training_flops(arch: Architecture, seq_len: int) -> int:
    """FLOPs of a training step per token: forward, and twice that backward.

    Activations that are computed again are not counted: these are the FLOPs of the model, not of the hardware.
    """
    return 3 * sum(forward_flops_per_token(arch, seq_len).values())


def mfu(flops_per_token: float, tokens_per_second: float, gpus: int, peak_flops: float) -> float:
    """Model FLOPs utilisation: flops_per_token * tokens_per_second / (gpus * peak_flops).

    (Chowdhery et al. 2022.) `peak_flops` is one GPU's dense peak, in FLOP/s, of the arithmetic trained in.
    """
    return flops_per_token * tokens_per_second / (gpus * peak_flops)


PEAK_FLOPS = {
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
}
"""Dense peak FLOP/s by the name a GPU gives itself, from NVIDIA's data sheets (fp32 without TF32)."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """The peak of a GPU such as "NVIDIA H100 80GB HBM3"; None where it is not known (a CPU): then there is no MFU."""
    for name, peak in PEAK_FLOPS.items():
        if all(word in device_name for word in name.split()):
            return peak[precision]
    return None

"""A small curriculum of two stages for tests that only need a valid one."""

from pathlib import Path

from pretrain import config

TEXT = """
name: small
seed: 1
data: {corpus: data/none}
model: {head_dim: 32}
train: {seq_len: 256, global_batch: 16, tokens: 1e6, lr: 1e-3}
log: {wandb: false, interval: 2}
stages:
  - name: seed
    model: {vocab: 1024, hidden: 128, layers: 2, heads: 4, kv_heads: 2, ffn: 384}
    parallel: {dp: 2}
  - name: wide
    model: {vocab: 2048, hidden: 256, layers: 2, heads: 8, kv_heads: 4, ffn: 768}
    parallel: {tp: 2, dp: 1}
"""


def small_curriculum(folder: Path) -> config.Curriculum:
    """It, read from a file in `folder`."""
    path = folder / "small.yaml"
    path.write_text(TEXT)
    return config.load(path)

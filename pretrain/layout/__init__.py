"""Where a box of a logical tensor lives: pipeline rank, tensor-parallel rank, fused parameter, ZeRO fragment.

Pure arithmetic: nothing here imports megatron, so that planning, showing and offline growth start at once. The built
models are checked against it in the tests.
"""

from pretrain.layout.cuts import Parameter, Piece
from pretrain.layout.layout import Layout, balanced_pipeline, parse_pipeline
from pretrain.layout.zero import Fragment, FragmentBox, fragment_boxes, fragments

__all__ = [
    "Fragment",
    "FragmentBox",
    "Layout",
    "Parameter",
    "Piece",
    "balanced_pipeline",
    "fragment_boxes",
    "fragments",
    "parse_pipeline",
]

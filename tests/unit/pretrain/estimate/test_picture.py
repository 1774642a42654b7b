"""Pipelines as text."""

from pretrain.estimate.picture import pipeline
from pretrain.layout import Layout


def test_uneven_and_interleaved() -> None:
    assert pipeline(Layout.make(3, pp=2, pipeline="Et|ttL")) == (
        "rank 0: [embedding, layer 0]\nrank 1: [layers 1-2, head]"
    )
    assert pipeline(Layout.make(6, pp=2, pipeline=[1, 2, 2, 1])) == (
        "rank 0: [embedding, layer 0]  [layers 3-4]\nrank 1: [layers 1-2]          [layer 5, head]"
    )
    assert pipeline(Layout.make(1, pp=2, pipeline=[1, 0])) == "rank 0: [embedding, layer 0]\nrank 1: [head]"

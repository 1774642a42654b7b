"""A pipeline as text: which layers each of its ranks holds."""

from pretrain.layout import Layout


def pipeline(layout: Layout) -> str:
    """A line for each pipeline rank, its chunks in the order in which a micro-batch passes them.

    >>> print(pipeline(Layout.make(6, pp=2, pipeline=[1, 2, 2, 1])))
    rank 0: [embedding, layer 0]  [layers 3-4]
    rank 1: [layers 1-2]          [layer 5, head]
    """
    last = len(layout.pipeline) - 1
    rows = []
    for rank in range(layout.pp):
        row = []
        for chunk, layers in layout.chunks(rank):
            parts = ["embedding"] if chunk == 0 else []
            if len(layers) == 1:
                parts.append(f"layer {layers[0]}")
            elif layers:
                parts.append(f"layers {layers[0]}-{layers[-1]}")
            row.append(f"[{', '.join([*parts, *(['head'] if chunk == last else [])])}]")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(layout.virtual)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(f"rank {rank}: {line}".rstrip() for rank, line in enumerate(lines))

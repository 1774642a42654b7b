"""The figures of a GPU as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.report.markdown import table as markdown_table

Row = Mapping[str, Any]


def markdown(data: Mapping[str, Any]) -> str:
    """All that has been measured, and what has not and why."""
    of = {kind: [row for row in data["rows"] if row["kind"] == kind] for kind in KINDS}
    machine = data["machine"]
    parts = [f"# {machine.get('device', 'No device')}", ""]
    parts += [", ".join(f"{key} {_cell(value)}" for key, value in machine.items() if key != "device")]
    parts += [f"Measured on {data['date']} in {data['seconds']:.0f} s.", ""]
    for kind, (title, note, table) in KINDS.items():
        if of[kind]:
            parts += [f"## {title}", "", *([note, ""] if note else []), *table(of[kind]), ""]
    if data["problems"]:
        parts += ["## Not measured", "", *(f"- {p['case']}: {p['why']}" for p in data["problems"]), ""]
    return "\n".join(parts)


def _ceilings(rows: Sequence[Row]) -> list[str]:
    return _table([{"": row["what"], "reached": f"{row['value']:,.2f} {row['unit']}"} for row in rows])


def _train(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        cells = {"model": row["model"], "layers": row.get("layers"), "parameters": row.get("parameters")}
        cells |= {"seq": row["seq_len"], "": "compiled" if row["compiled"] else "eager"}
        cells |= {"micro-batch": f"{row['micro_batch']} x {row['micro_batches']}" if "full" not in row else "-"}
        if "full" in row:
            found.append({**cells, "micro-batch": row["micro_batch"], "tokens/s": "the memory is full"})
            continue
        cells |= {"ms": row["ms_per_step"], "tokens/s": round(row["tokens_per_second"]), "TFLOP/s": row["tflops"]}
        cells |= {"MFU": _percent(row["mfu"]), "peak GiB": row.get("peak_gib"), "plan GiB": row["plan_gib"]}
        if row.get("peak_gib"):
            cells["plan / peak"] = row["plan_gib"] / row["peak_gib"]
        found.append(cells | {"waits": row.get("waits_per_step"), "warm-up s": row["warm_up_seconds"]})
    return _table(found)


def _profile(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        how = f"{row['model']}, seq {row['seq_len']}, {'compiled' if row['compiled'] else 'eager'}"
        lines.append({"": how, "ms": row["ms"], "kernels": row["kernels"]})
        lines[-1] |= {name: _percent(share) for name, share in row["shares"].items()}
    found = _table(lines)
    for row, line in zip(rows, lines, strict=True):
        longest = [{k: _percent(v) if k == "share" else v for k, v in kernel.items()} for kernel in row["longest"][:8]]
        found += ["", f"Longest, {line['']}:", "", *_table(longest)]
    return found


def _event(rows: Sequence[Row]) -> list[str]:
    hidden = ("case", "kind")
    return _table([{k.replace("_", " "): v for k, v in row.items() if k not in hidden} for row in rows])


KINDS = {
    "ceilings": ("What the card reaches", "", _ceilings),
    "train": (
        "Training steps",
        "bf16, one GPU, random tokens; micro-batch: samples x micro-batches of a step; waits: of the host for the GPU "
        "in a step; the plan's GiB are without its allowances for fragments and CUDA's context.",
        _train,
    ),
    "profile": ("Where a step's time goes", "Of the time between the first and the last kernel of a step.", _profile),
    "event": (
        "A growth event",
        "save: of the parent's checkpoint; read: of its files from the page cache; fill: reading, growing and moving "
        "all weights and moments; publish: making the working weights of them.",
        _event,
    ),
}


def _table(rows: Sequence[Row]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [markdown_table(columns, [[_cell(row.get(c)).replace("|", "\\|") for c in columns] for row in rows])]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)

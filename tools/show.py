"""Shows what is in a checkpoint: architecture, parameters, progress, generations, files, growth events, ancestors.

Reads the manifest alone (and those of the ancestors that are still there), so it is quick at any size; use
tools/verify.py to read every byte.

examples:
  python tools/show.py runs/demo
  python tools/show.py runs/demo/wide/checkpoints/step-00000200 --events
"""

import argparse
import sys
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from growth import Plan
from growth.certificate import Certificate
from growth.describe import describe_plan, table
from pretrain.checkpoint import STORED, Manifest, model_of
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config.orders import in_words
from pretrain.data.stream.mixture import entries
from pretrain.report import summary


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, a stage or a run (the newest that verifies)")
    parser.add_argument("--events", action="store_true", help="print the plan and the certificate of each growth event")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError when there is no checkpoint or it is corrupt."""
    path = locate(options.checkpoint)
    manifest = Manifest.load(path)
    data = describe(path, manifest)
    text = [_head(data), _section("parameters", _parts(data)), _section("generations", _generations(data))]
    text += [_section("files", _files(data)), _section("growth", _history(data)), _section("ancestors", _lineage(data))]
    if options.events:
        data["events"] = list(manifest.events)
        text += [_event(event) for event in manifest.events if "plan" in event]
    return command.Answer("\n\n".join(text), data)


def describe(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Everything that is shown, as JSON."""
    arch = model_of(manifest, path)
    files = []
    for name, file in manifest.files.items():
        boxes = sum(b.file == name for t in manifest.tensors.values() for stored in t.boxes.values() for b in stored)
        files.append({"name": name, "bytes": file.size, "blocks": len(file.blocks), "boxes": boxes})
    lineage = [
        {
            **parent,
            "stage": ancestor.stage if ancestor else None,
            "step": ancestor.step if ancestor else None,
            "problem": problem,
        }
        for parent, ancestor, problem in summary.ancestors(path, manifest)
    ]
    return {
        "path": str(path),
        "hash": manifest.hash,
        "format_version": manifest.format_version,
        "stage": manifest.stage,
        "step": manifest.step,
        "architecture": arch.to_json(),
        **({"blocks": in_words(arch)} if in_words(arch) else {}),
        "parameters": arch.parameters(),
        "parts": summary.parts(arch),
        "kinds": [kind for kind in STORED if manifest.has(kind)],
        "progress": dict(manifest.progress),
        "generations": list(manifest.generations.get("each", [])),
        "cursor": dict(manifest.cursor),
        **({"taught_by": taught} if (taught := summary.teacher(manifest)) else {}),
        "parallel": dict(manifest.config.get("parallel", {})),
        "files": files,
        "bytes": manifest.size,
        "history": summary.history(manifest),
        "ancestors": lineage,
    }


def _head(data: dict[str, Any]) -> str:
    sizes, scalars = data["architecture"]["sizes"], data["architecture"]["scalars"]
    frequencies = data["architecture"].get("rope_frequencies", [])
    progress, cursor = data["progress"], data["cursor"]
    moments = "with moments" if "exp_avg" in data["kinds"] else "without moments: training starts with fresh ones"
    seconds = timedelta(seconds=round(progress.get("seconds", 0)))
    rows = [
        ["checkpoint", data["path"]],
        ["hash", f"{data['hash']} (format {data['format_version']})"],
        ["model", f"{data['architecture']['family']}, {data['parameters']:,} parameters, {moments}"],
        ["sizes", ", ".join(f"{axis} {size:,}" for axis, size in sizes.items())],
        ["scalars", ", ".join(f"{name} {value:.10g}" for name, value in scalars.items())],
        *([["blocks", data["blocks"]]] if "blocks" in data else []),
        *([["rope_frequencies", ", ".join(f"{f:.6g}" for f in frequencies)]] if frequencies else []),
        *([["taught by", "{path} ({hash})".format(**data["taught_by"])]] if "taught_by" in data else []),
        ["stage", f"{data['stage']}, step {data['step']:,}, {progress.get('stage_tokens', 0):,} tokens of this stage"],
        ["run", f"{progress.get('tokens', 0):,} tokens, {progress.get('flops', 0):.4g} FLOPs, {seconds} of training"],
    ]
    if cursor:
        rows += [["data", _place(each)] for each in entries(cursor)]
    if data["parallel"]:
        written = {key: value for key, value in data["parallel"].items() if value not in (None, False)}
        rows.append(["written by", " x ".join(f"{key} {value}" for key, value in written.items())])
    return table(rows)


def _place(cursor: Mapping[str, Any]) -> str:
    """Where one corpus goes on, and what it has given as one of several."""
    if not {"epoch", "document"} <= cursor.keys():
        return str(cursor)
    given = f"; {cursor['tokens']:,} tokens of it, weight {cursor['weight']:g}" if "weight" in cursor else ""
    return f"epoch {cursor['epoch'] + 1}, document {cursor['document']:,} of it{given}"


def _parts(data: dict[str, Any]) -> str:
    rows = [["", "tensor", "shape", "count", "parameters", "share"]]
    for part in data["parts"]:
        share = f"{part['parameters'] / data['parameters']:.1%}"
        shape = "x".join(map(str, part["shape"]))
        rows.append(["", part["name"], shape, str(part["count"]), f"{part['parameters']:,}", share])
    return table(rows)


def _generations(data: dict[str, Any]) -> str:
    rows = [["", "generation", "born in stage", "after tokens", "optimizer steps"]]
    for i, birth in enumerate(data["generations"]):
        rows.append(["", str(i), birth["stage"], f"{birth['birth_tokens']:,}", f"{birth['adam_step']:,}"])
    return table(rows)


def _files(data: dict[str, Any]) -> str:
    rows = [["", "file", "bytes", "blocks", "boxes"]]
    rows += [["", f["name"], f"{f['bytes']:,}", f"{f['blocks']:,}", f"{f['boxes']:,}"] for f in data["files"]]
    rows.append(
        ["", "all", f"{data['bytes']:,}", *(f"{sum(f[k] for f in data['files']):,}" for k in ("blocks", "boxes"))]
    )
    return table(rows)


def _history(data: dict[str, Any]) -> str:
    return "\n".join(f"  {row['stage']}: {summary.in_one_line(row)}" for row in data["history"])


def _lineage(data: dict[str, Any]) -> str:
    lines = []
    for parent in data["ancestors"]:
        where = f"stage {parent['stage']}, step {parent['step']:,}, hash as recorded" if not parent["problem"] else ""
        lines.append(f"  {parent['path']} ({parent['hash']}): {where or parent['problem']}")
    return "\n".join(lines)


def _event(event: Mapping[str, Any]) -> str:
    text = f"event of stage {event['stage']}\n{describe_plan(Plan.from_json(event['plan']))}"
    return f"{text}\n{Certificate.from_json(event['certificate'])}" if event.get("certificate") else text


def _section(title: str, text: str) -> str:
    return f"{title}\n{text}" if text else f"{title}\n  none"


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

"""What a checkpoint is, for people and for machines: its parts, the growth events behind it, its ancestors."""

import os.path
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from growth import Architecture
from growth.certificate import Certificate
from pretrain.checkpoint import Manifest
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.errors import UserError


def parts(arch: Architecture) -> list[dict[str, Any]]:
    """For each row of the architecture its name, the shape of one tensor, their number, and parameters of all."""
    rows = []
    for spec in arch.rows:
        shape = [dim.size(arch.sizes) for dim in spec.dims]
        count = sum(kind in spec.kinds for kind in arch.kinds) if spec.layered else 1
        if count or not arch.mixed:
            rows.append({"name": spec.name, "shape": shape, "count": count, "parameters": count * prod(shape)})
    return rows


def history(manifest: Manifest) -> list[dict[str, Any]]:
    """The events of a lineage, oldest first.

    Each has its stage, the parameters before and after, the operators, the certificate (or None) and the seconds. An
    import has the name of the model and what is known of its vocabulary, an average its rule and whose it is.
    """
    rows: list[dict[str, Any]] = []
    for event in manifest.events:
        if "imported" in event:
            imported = {key: event["imported"][key] for key in ("name", "vocabulary")}
            rows.append({"stage": event["stage"], "imported": imported})
            continue
        if "averaged" in event:
            rows.append({"stage": event["stage"], "averaged": dict(event["averaged"])})
            continue
        plan = event["plan"]
        rows.append(
            {
                "stage": event["stage"],
                "parameters_before": Architecture.from_json(plan["old"]).parameters(),
                "parameters_after": Architecture.from_json(plan["new"]).parameters(),
                "operators": [name for step in plan["steps"] for name in step["operators"]],
                "certificate": event.get("certificate"),
                "seconds": event.get("seconds"),
            }
        )
    return rows


def teacher(manifest: Manifest) -> dict[str, Any] | None:
    """Of a stage with a teacher: its name and the hash of its manifest."""
    distill = manifest.config.get("distill", {})
    return {"path": distill["teacher"], "hash": distill.get("teacher_hash", "")} if distill.get("teacher") else None


def in_one_line(row: Mapping[str, Any]) -> str:
    """An event of `history` in words."""
    if "imported" in row:
        vocabulary = row["imported"]["vocabulary"]
        why = f" ({vocabulary['reason']})" if vocabulary.get("reason") else ""
        return f"imported from {row['imported']['name']}; vocabulary in {vocabulary['order']} order{why}"
    if "averaged" in row:
        return f"weights of {len(row['averaged']['of'])} checkpoints averaged ({row['averaged']['rule']})"
    text = f"grown from {row['parameters_before']:,} to {row['parameters_after']:,} parameters"
    text += f" ({', '.join(row['operators']) or 'same shape'})"
    if not row["certificate"]:
        return text + "; no certificate"
    certificate = Certificate.from_json(row["certificate"])
    verdict = "preserved" if certificate.preserved else "changed"
    text += f"; function {verdict}, logits to {certificate.error:.2g}"
    text += f", loss {certificate.loss_after - certificate.loss_before:+.1e}"
    text += f", {certificate.dead_share:.2%} of the new parameters dead"
    before, after = certificate.bits_per_byte_before, certificate.bits_per_byte_after
    if before is not None and after is not None:
        text += f", bits per byte {before:.4f} to {after:.4f}"
    return text


def ancestors(path: Path, manifest: Manifest) -> Iterator[tuple[dict[str, str], Manifest | None, str]]:
    """The chain of parents, nearest first: ({"path", "hash"}, its manifest if it is there, what is wrong or "").

    A parent is looked for where the manifest says and, because runs are moved, at the same place beside this run's
    stages. The chain ends at a parent that is not there or is not the one that was grown: its parent is unknown.
    """
    while manifest.parent:
        named = Path(manifest.parent["path"])
        beside = path.absolute().parents[2].joinpath(*named.parts[-3:]) if len(path.absolute().parents) > 2 else named
        parent, problem = None, "not found here"
        for place in dict.fromkeys((named, beside)):
            if not os.path.exists(place / MANIFEST):
                continue
            try:
                candidate = Manifest.load(place)
            except UserError as error:
                problem = str(error)
                continue
            if candidate.hash == manifest.parent["hash"]:
                parent, path, problem = candidate, place, ""
                break
            problem = f"another checkpoint is at {place} (its hash is {candidate.hash})"
        yield {"path": str(path if parent else named), "hash": manifest.parent["hash"]}, parent, problem
        if parent is None:
            return
        manifest = parent

"""What each rule has removed, and why: counted and sampled by every task, then added up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash

from pretrain.runtime import documents
from pretrain.runtime.files import make_folder, write_json

EXCERPT = 300  # characters of a document that is shown

Counts = dict[str, Any]
"""By reason: documents, bytes, and samples, which are excerpts under the hashes of their documents."""


class Removed:
    """Takes what a step removes. It stands where datatrove's steps expect a writer of excluded documents.

    Of each reason it keeps the documents with the smallest hashes, which are the same however the work is cut.
    """

    def __init__(self, folder: Path, rule: str, samples: int) -> None:
        self.folder, self.rule, self.samples = folder, rule, samples
        self.reasons: Counts = {}

    def __enter__(self) -> Removed:
        self.reasons, self._rank = {}, -1
        return self

    def write(self, document: Any, rank: int = 0) -> None:
        """Counts one document; `filter_reason` in its metadata says why it goes."""
        self.add(document.metadata.get("filter_reason", self.rule), document.id, document.text, rank)

    def add(self, reason: str, name: str, text: str, rank: int) -> None:
        """Counts one document."""
        self._rank, data = rank, text.encode(errors="replace")
        counts = self.reasons.setdefault(reason, {"documents": 0, "bytes": 0, "samples": {}})
        counts["documents"] += 1
        counts["bytes"] += len(data)
        samples = counts["samples"]
        samples[xxhash.xxh3_64_hexdigest(data)] = f"{name}: {text[:EXCERPT]}"
        if len(samples) > self.samples:
            del samples[max(samples)]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.reasons:
            make_folder(self.folder / self.rule)
            write_json(self.folder / self.rule / f"{self._rank:05d}.json", self.reasons)


def total(folder: Path, rule: str, samples: int) -> Counts:
    """What all tasks have removed by a rule."""
    reasons: Counts = {}
    for file in sorted((folder / rule).glob("*.json")):
        for reason, part in documents.read(file, documents.Object).items():
            counts = reasons.setdefault(reason, {"documents": 0, "bytes": 0, "samples": {}})
            counts["documents"] += part["documents"]
            counts["bytes"] += part["bytes"]
            counts["samples"] = dict(sorted({**counts["samples"], **part["samples"]}.items())[:samples])
    return dict(sorted(reasons.items()))


def markdown(report: dict[str, Any]) -> str:
    """The report for people: a table of rules and reasons, then the samples."""
    read, left = report["read"], report["left"]
    lines = [
        "# What was left out, and why",
        "",
        f"Read: {read['documents']:,} documents, {read['bytes']:,} bytes of text.",
        f"Left: {left['documents']:,} documents, {left['bytes']:,} bytes, {left['tokens']:,} tokens.",
        "",
        "| rule | reason | documents | bytes |",
        "|---|---|--:|--:|",
    ]
    rows = [(rule, reason, counts) for rule, reasons in report["removed"].items() for reason, counts in reasons.items()]
    lines += [f"| {rule} | {reason} | {c['documents']:,} | {c['bytes']:,} |" for rule, reason, c in rows]
    for rule, reason, counts in rows:
        lines += ["", f"## {rule}: {reason}", ""]
        lines += [f"    {documents.one_line(sample)}" for sample in counts["samples"].values()]
    return "\n".join(lines) + "\n"

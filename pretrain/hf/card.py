"""The model card of an export: README.md with the model's shape, how it grew and what it was trained on."""

from collections.abc import Iterator, Sequence

from growth import Architecture
from pretrain.checkpoint import Manifest
from pretrain.data.stream.mixture import entries
from pretrain.families.common.hf.form import HfForm
from pretrain.judge.records import Record
from pretrain.report import summary
from pretrain.report.markdown import table
from pretrain.stage.trained import Group, rows

HEAD = """---
library_name: transformers
pipeline_tag: {task}
tags: [cambium, {family}]
---

# {title}

A {family} of {parameters:,} parameters, grown while it was pretrained with Cambium.

```python
from transformers import {auto}, AutoTokenizer
model = {auto}.from_pretrained("PATH"{trust})
tokenizer = AutoTokenizer.from_pretrained("PATH"{trust})
```
"""

FOOT = """

The certificate of an event compares the model before and after growth on held-out text: the largest difference of a
logit relative to the largest logit, the change of the loss in nats per token, and the share of new parameters that
receive no gradient.
"""


def card(
    manifest: Manifest,
    arch: Architecture,
    family: HfForm,
    dtype: str,
    trained: Sequence[Group] = (),
    evaluation: Record | None = None,
) -> str:
    """The text of the card.

    trained: what the stage of the checkpoint trained and what not. evaluation: what came of tasks on the checkpoint.
    """
    progress, data = manifest.progress, manifest.config.get("data", {})
    title = " ".join(filter(None, [arch.family, "of stage", manifest.stage]))
    shape = {**arch.sizes, **arch.scalars}
    texts = [f"`{entry['corpus']}`" for entry in entries(manifest.cursor) if "corpus" in entry]
    facts = {
        "tokens trained on": f"{progress.get('tokens', 0):,}",
        "training FLOPs": f"{progress.get('flops', 0.0):.4g}",
        "step of the stage": f"{manifest.step:,}",
        "corpus": data.get("corpus") or ", ".join(source["corpus"] for source in data.get("corpora", [])) or "unknown",
        **({"text (hash of corpus, seed and held-out share)": ", ".join(texts)} if texts else {}),
        "checkpoint (manifest hash)": f"`{manifest.hash}`",
        "parent (manifest hash)": f"`{manifest.parent['hash']}`" if manifest.parent else "none",
        **({"teacher (hash)": f"`{taught['hash']}`"} if (taught := summary.teacher(manifest)) else {}),
        "weights": f"{dtype}, {family.model_class}",
    }
    births = manifest.generations.get("each", [])
    auto = "AutoModelForCausalLM" if family.generates else "AutoModelForPreTraining"
    trust = ", trust_remote_code=True" if family.carried else ""
    task = "text-generation" if family.generates else "fill-mask"
    lines = [
        HEAD.format(family=arch.family, title=title, parameters=arch.parameters(), auto=auto, task=task, trust=trust)
    ]
    lines += ["## Training", "", table(["", ""], [[k, v] for k, v in facts.items()]), ""]
    lines += ["## Shape", "", table(["axis or scalar", "value"], [[k, f"{v:.10g}"] for k, v in shape.items()]), ""]
    lines += ["## Growth", ""]
    events = [[row["stage"], summary.in_one_line(row)] for row in summary.history(manifest)]
    lines += [table(["stage", "event"], events) if events else "None: it had this size from the start."]
    born = [[str(i), b["stage"], f"{b['birth_tokens']:,}", f"{b['adam_step']:,}"] for i, b in enumerate(births)]
    lines += ["", "## Generations of parameters", ""]
    lines += [table(["generation", "born in stage", "after tokens", "optimizer steps"], born)]
    if trained:
        header, *cells = rows(trained)
        about = f"In stage {manifest.stage}, the last one; *moved by* is ||end - start|| / ||start|| over the stage."
        lines += ["", "## What was trained and what was frozen", "", about, "", table(header, cells)]
    if evaluation:
        lines += ["", "## Evaluation", "", f"By {evaluation.harness}.", ""]
        lines += [table(["task", "metric", "value", "samples", "shots"], list(_results(evaluation)))]
    return "\n".join(lines) + FOOT


def _results(evaluation: Record) -> Iterator[list[str]]:
    for task, result in evaluation.results.items():
        for metric, value in result["metrics"].items():
            error = result["errors"].get(metric)
            shown = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
            yield [task, metric, shown, str(result["samples"]), str(result["fewshot"])]

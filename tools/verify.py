"""Verifies a checkpoint: reads every block of every file. With --parent, also the growth event that it came from.

With --parent the event is measured again, in one process and with a reference model in plain PyTorch that shares
nothing with the training stack: the function before and after in float64, dead new parameters, whether the moments
follow the gradients. If the checkpoint is the grown one itself (step 0), every weight and moment is compared with what
the plan makes of the parent. The exit code is 0 when all is well, 1 when something is not, 2 when it cannot be told.

examples:
  python tools/verify.py runs/demo/wide
  python tools/verify.py runs/demo/wide --parent runs/demo/seed
  python tools/verify.py grown --parent runs/demo/seed --corpus data/kjv
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from growth import Architecture, Plan
from growth.certificate import TOLERANCE, Certificate
from growth.describe import table
from pretrain.checkpoint import CorruptCheckpoint, Reader, model_of, verify_all
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import stage_from
from pretrain.errors import UserError
from pretrain.verify import audit
from pretrain.verify.compare import differences

SHOWN = 20  # findings of one check that are printed
RULE = 1e-4  # tolerance, as a share of the largest gradient; rounding fp32 weights makes 1e-7 of it


@dataclass(frozen=True)
class Check:
    """A check. passed: None if it could not or need not be made. findings: what is wrong, one line each."""

    name: str
    passed: bool | None
    told: str
    findings: tuple[str, ...] = ()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, a stage or a run (the newest)")
    parser.add_argument(
        "--parent", type=Path, help="the checkpoint that it was grown from: measure the growth event again"
    )
    parser.add_argument(
        "--corpus", type=Path, help="text to measure on (default: the corpus of the checkpoint's config)"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for what is no checkpoint, or no grown one."""
    bars = sys.stderr.isatty()
    checks, certificate = [], None
    path = options.checkpoint
    try:
        path = locate(options.checkpoint)
        checks.append(integrity(path, bars))
        if options.parent:
            with Reader(locate(options.parent)) as parent, Reader(path) as child:
                more, certificate = event(parent, child, options.corpus, bars)
            checks += more
    except CorruptCheckpoint as error:
        checks.append(Check("integrity", False, "corrupt", (str(error),)))
    failed = any(check.passed is False for check in checks)
    words = {True: "ok", False: "FAILED", None: "skipped"}
    text = [str(path), table([[words[check.passed], check.name, check.told] for check in checks])]
    for check in checks:
        hidden = len(check.findings) - SHOWN
        text += [f"  {check.name}: {finding}" for finding in check.findings[:SHOWN]]
        text += [f"  {check.name}: and {hidden:,} more"] if hidden > 0 else []
    if certificate:
        text.append(str(certificate))
    data = {
        "checkpoint": str(path),
        "verified": not failed,
        "checks": [asdict(check) for check in checks],
        "certificate": certificate.to_json() if certificate else None,
    }
    return command.Answer("\n".join(text), data, int(failed))


def integrity(path: Path, bars: bool) -> Check:
    """Checks every block of every file."""
    problems = verify_all(path, progress=bars)
    with Reader(path) as reader:
        files = reader.manifest.files
        told = (
            f"{len(files)} files, {sum(len(f.blocks) for f in files.values()):,} blocks, {reader.manifest.size:,} bytes"
        )
    return Check("integrity", not problems, told, tuple(problems))


def event(parent: Reader, child: Reader, corpus: Path | None, bars: bool) -> tuple[list[Check], Certificate | None]:
    """Makes the checks of the event between two checkpoints, and measures its certificate again."""
    events = list(child.manifest.events)
    if not child.manifest.parent or not any("plan" in event for event in events):
        raise UserError(f"{child.path} was not grown from anything: leave --parent out")
    recorded = child.manifest.parent["hash"]
    same = recorded == parent.manifest.hash
    told = recorded if same else f"grown from {recorded}, and {parent.path} is {parent.manifest.hash}"
    checks = [Check("parent", same, told)]
    plan, *patches = _plans(events, child.manifest.stage, len(parent.manifest.events) if same else None)
    old, new = (model_of(reader.manifest, reader.path) for reader in (parent, child))
    problems = _plan_problems(plan, patches, parent, old, child, new)
    checks.append(Check("plan", not problems, ", ".join(plan.operators) or "same shape", tuple(problems)))
    if old != plan.old or new.sizes != (plan, *patches)[-1].new.sizes:
        return checks, None
    if patches:
        told = f"{len(patches)} inside the stage, each with a certificate of its own: tools/show.py --events"
        checks.append(Check("patches", None, told))

    stage = stage_from(child.manifest.config, str(child.path))
    text = audit.text(plan, stage, audit.open_corpus(stage, corpus))
    first = child.manifest.step == 0
    if first:
        mismatches = differences(plan, parent, child, bars)
        told = f"{3 if child.has('exp_avg') else 1} x {new.parameters():,} elements, bit for bit"
        checks.append(Check("content", not mismatches, told, tuple(map(str, mismatches))))
        checks.append(_function(plan, old, parent, new, child, text))
        checks.append(_moments(plan, parent, new, child, text))
    else:
        told = f"the checkpoint has been trained for {child.manifest.step:,} steps since: the plan alone is measured"
        checks.append(Check("content", None, told))
    certificate = audit.certificate(plan, parent.read, text, stage.train.lr)
    if not first:
        checks.append(_verdict(certificate.error, certificate, text))
    told = f"{certificate.dead_share:.2%} of {sum(n for _, n in certificate.dead.values()):,} new parameters"
    checks.append(
        Check("dead", None, "too large for this machine") if not audit.fits(plan) else Check("dead", True, told)
    )
    return checks, certificate


def _grew(event: Mapping[str, Any]) -> bool:
    """Whether it is an event of growth, and not an average of checkpoints, which has no certificate."""
    return "plan" in event and "averaged" not in event


def _plans(events: Sequence[Mapping[str, Any]], stage: str, before: int | None) -> list[Plan]:
    """The plan that made the first model of a stage, and those of the patches inside it since.

    before: how many events the parent had; None where that is not known, and the last events of this stage are meant.
    """
    if before is None:
        before = len(events)
        while before and events[before - 1]["stage"] == stage:
            before -= 1
    plans = [Plan.from_json(event["plan"]) for event in events[before:] if _grew(event)]
    if not plans:
        raise UserError(f"stage {stage!r} has no growth event after those of its parent")
    return plans


def _plan_problems(
    plan: Plan, patches: Sequence[Plan], parent: Reader, old: Architecture, child: Reader, new: Architecture
) -> list[str]:
    """All places where the plans, one after the other, do not lead from the parent's model to the child's."""
    problems = _differences("leads from", plan.old, str(parent.path), old)
    before = plan
    for number, patch in enumerate(patches, 1):
        problems += _differences("leads to", before.new, f"what patch {number} begins with", patch.old)
        before = patch
    return problems + _differences("leads to", before.new, str(child.path), new)


def _differences(leads: str, planned: Architecture | None, where: str, actual: Architecture | None) -> list[str]:
    if planned is None or actual is None or planned.family != actual.family:
        families = [arch.family if arch else "nothing" for arch in (planned, actual)]
        return [f"the plan {leads} {families[0]}, and {where} is {families[1]}"]
    values = {**actual.sizes, **actual.scalars}
    problems = [
        f"the plan {leads} {name} {value:.10g}, and {where} has {values[name]:.10g}"
        for name, value in {**planned.sizes, **planned.scalars}.items()
        if values[name] != value
    ]
    if actual.rope_frequencies != planned.rope_frequencies:
        problems.append(f"the plan {leads} other rotary frequencies than {where} has")
    return problems


def _function(
    plan: Plan, old: Architecture, parent: Reader, new: Architecture, child: Reader, text: audit.Text
) -> Check:
    """Compares the function of the stored model with the parent's, whatever the plan says of its elements."""
    error, before, after = audit.function(old, parent.read, new, child.read, text.probe)
    return _verdict(error, Certificate.of(plan, error=error, loss_before=before, loss_after=after), text)


def _verdict(error: float, measured: Certificate, text: audit.Text) -> Check:
    change = measured.loss_after - measured.loss_before
    told = f"logits to {error:.2g}, loss {measured.loss_before:.6f} {change:+.1e}, on {text.source}"
    if not measured.claims:
        return Check("function", True, f"{told}; the plan does not claim to preserve")
    finding = f"the plan claims to preserve, and the logits differ by {error:.3g}, more than {TOLERANCE:.0e}"
    return Check("function", measured.preserved, told, () if measured.preserved else (finding,))


def _moments(plan: Plan, parent: Reader, new: Architecture, child: Reader, text: audit.Text) -> Check:
    """Whether the plan's rule for the moments is the one that gradients follow."""
    if not plan.preserves or not audit.fits(plan):
        return Check("moments", None, "too large for this machine" if plan.preserves else "the function changes")
    errors = audit.moments_follow(plan, parent.read, new, child.read, text.probe)
    worst = max(errors, key=lambda name: errors[name])
    told = f"the plan's rule against gradients: to {errors[worst]:.2g} ({worst})"
    if plan.approximate:
        return Check("moments", True, f"{told}; approximate by design: {', '.join(plan.approximate)}")
    wrong = [f"the gradient of {name} differs by {e:.3g} from the rule" for name, e in errors.items() if not e <= RULE]
    return Check("moments", not wrong, told, tuple(wrong))


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

"""Says what a curriculum will cost before its first GPU hour: parameters, bytes on a GPU, FLOPs, hours, traffic.

Needs no GPU and builds no model. Numbers of parameters, weights, gradients and optimizer state are exact; activations
follow formulas that are tested against real models; MFU, storage and network are assumptions, which the answer names.
Ends with exit code 2 when a stage does not fit its GPUs, and says what would make it fit.

Several curricula are compared: their FLOPs, tokens and hours, and the loss that a law which was fitted to models from
scratch gives them, if growth costs nothing.

examples:
  python tools/plan.py configs/llama2_55m_to_7b.yaml
  python tools/plan.py configs/llama2_55m_to_7b.yaml --gpu h100-80gb --mfu 0.4
  python tools/plan.py configs/bert_to_large.yaml --nodes 2 --suggest
  python tools/plan.py configs/llama2_55m_to_7b.yaml configs/llama2_late_jump_to_7b.yaml
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from growth.describe import describe_mup, table
from pretrain import config
from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.config.orders import in_words
from pretrain.errors import UserError
from pretrain.estimate import cost, law, picture
from pretrain.estimate.cost import HOST, STORAGE, Cost
from pretrain.estimate.flops import PEAK_FLOPS
from pretrain.estimate.parts import PARTS, parameters_by_part
from pretrain.estimate.speed import GPUS, SINGLE, SOURCE, Gpu
from pretrain.estimate.suggest import Suggestion, suggest
from pretrain.families.text import in_tokens
from pretrain.report.plot import duration, short

SHOWN = 3
"""The most layouts that are suggested for a stage."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="+", help="the curriculum, a YAML file; several: they are compared")
    parser.add_argument("--nodes", type=command.positive, help="nodes of every stage (default: what its dp asks for)")
    parser.add_argument("--gpus-per-node", type=command.positive, default=8, help="default: %(default)s")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="a100-80gb", help="default: %(default)s")
    parser.add_argument(
        "--mfu",
        default="auto",
        help="share of the peak that is reached, such as 0.45 measured (default: auto, assumed)",
    )
    parser.add_argument(
        "--suggest",
        action="store_true",
        help="the fastest TP x PP x DP, micro-batch and recomputation of each stage that fit its GPUs",
    )


def work(options: argparse.Namespace) -> Answer:
    """Raises UserError when a stage does not fit its GPUs."""
    gpu = GPUS[options.gpu]
    every = [_costs(path, options, gpu) for path in options.config]
    costs = [each for of_curriculum in every for each in of_curriculum]
    if options.suggest:
        world = options.nodes and options.nodes * options.gpus_per_node
        return _suggested(costs, world, options, gpu)
    if problems := [_too_large(c, gpu) for c in costs if c.memory.total > gpu.memory]:
        raise UserError("\n".join(problems))
    if len(every) > 1:
        return _compared(dict(zip(options.config, every, strict=True)), _assumptions(options, gpu))
    unusual = [[c.stage.name, in_words(c.arch)] for c in costs if in_words(c.arch)]
    text = [_stages(costs), *([table([["blocks", ""], *unusual])] if unusual else []), _batches(costs)]
    text += [_text(costs)] if any(c.packings for c in costs) else []
    text += [_parameters(costs), _memory(costs, gpu), _traffic(costs)]
    text += [_pipelines(costs)] if any(c.layout.pp > 1 for c in costs) else []
    text += [f"{c.stage.name}: {describe_mup(mup, c.arch)}" for c in costs if (mup := c.stage.train.mup.base())]
    return Answer("\n\n".join([*text, _total(costs), _assumptions(options, gpu)]), _data(costs))


def _costs(path: str, options: argparse.Namespace, gpu: Gpu) -> list[Cost]:
    """Of each stage of a curriculum that is trained."""
    curriculum = config.load(path)
    curriculum = replace(curriculum, stages=tuple(map(in_tokens, curriculum.stages)))
    # Suggestions are for the nodes that are asked for, whatever the layouts in the file ask for.
    nodes = None if options.suggest else options.nodes
    how = {"gpus_per_node": options.gpus_per_node, "nodes": nodes, "mfu": _mfu(options.mfu)}
    costs = cost.of_curriculum(curriculum, gpu=gpu, **how)
    return costs[1:] if curriculum.yours else costs  # the first stage is the model as it came


def _compared(every: Mapping[str, Sequence[Cost]], assumptions: str) -> Answer:
    """Several curricula side by side, each with its last model from scratch."""
    rows = [["curriculum", "stages", "tokens", "FLOPs", "GPU hours", "time", "loss by the law"]]
    data = []
    for path, costs in every.items():
        flops, hours = sum(c.flops for c in costs), sum(c.gpu_hours for c in costs)
        tokens, seconds = sum(c.stage.train.tokens for c in costs), sum(c.seconds for c in costs)
        alone_flops, alone_hours = cost.from_scratch(list(costs))
        end = law.losses(law.HOFFMANN, costs)[-1]
        same_tokens, same_flops = law.from_scratch(law.HOFFMANN, costs)
        name = costs[-1].stage.name
        spent = [f"{flops:.2e}", f"{hours:,.0f}", duration(seconds), f"{end:.3f}"]
        alone = [f"{alone_flops:.2e}", f"{alone_hours:,.0f}", "", f"{same_tokens:.3f}"]
        rows.append([path, str(len(costs)), short(tokens), *spent])
        rows.append([f"  {name} from scratch, the same tokens", "1", short(tokens), *alone])
        rows.append([f"  {name} from scratch, the same FLOPs", "1", "", f"{flops:.2e}", "", "", f"{same_flops:.3f}"])
        scratch = {"flops": alone_flops, "gpu_hours": alone_hours, "loss": same_tokens, "loss_at_flops": same_flops}
        about = {"tokens": tokens, "flops": flops, "gpu_hours": hours, "seconds": seconds, "loss": end}
        data.append({"config": path, "stages": len(costs), **about, "from_scratch": scratch})
    caveat = (
        "The law is Hoffmann et al.'s (2022, equation 10) of causal models from scratch; of growth it is taken that "
        "the event costs nothing, and that a grown model goes on as one from scratch with its loss would. That is a "
        "bound rather than a forecast, tokens are taken for those of one vocabulary, and the differences between "
        "recipes are exactly what it does not see: tools/study.py measures them."
    )
    return Answer("\n\n".join([table(rows), caveat, assumptions]), {"curricula": data})


def _suggested(costs: Sequence[Cost], world: int | None, options: argparse.Namespace, gpu: Gpu) -> Answer:
    """The layouts to suggest for `world` GPUs, or for as many as each stage has."""
    suggestions = [
        suggest(
            c.arch,
            c.stage.train,
            gpu,
            world=world or c.layout.world,
            before=c.before,
            taught=c.taught,
            gpus_per_node=options.gpus_per_node,
        )[:SHOWN]
        for c in costs
    ]
    if none := [c.stage.name for c, fitting in zip(costs, suggestions, strict=True) if not fitting]:
        where = f"{world} GPUs" if world else "the GPUs of its layout"
        raise UserError(
            f"nothing fits for {', '.join(none)} on {where}: give more --nodes, or make train.global_batch and its "
            "ramp divisible by more data-parallel ranks"
        )
    text = "\n\n".join([_suggestions(costs, suggestions), _assumptions(options, gpu)])
    stages = [
        {"stage": c.stage.name, "suggestions": [_suggestion(s) for s in fitting]}
        for c, fitting in zip(costs, suggestions, strict=True)
    ]
    return Answer(text, {"stages": stages})


def _stages(costs: Sequence[Cost]) -> str:
    head = ["stage", "parameters", "x", "layers x hidden", "vocab", "TP x PP x DP", "nodes", "tokens", "FLOPs"]
    rows = [[*head, "MFU", "bubble", "tokens/s", "time", "GPU hours", "growth event"]]
    before = 0
    for c in costs:
        size, train, count = c.arch.sizes, c.stage.train, c.arch.parameters()
        rows.append(
            [
                c.stage.name,
                f"{count:,}",
                f"{count / before:.2f}" if before else "",
                f"{c.arch.depth} x {size['hidden']}",
                f"{size['vocab']:,}",
                f"{c.layout.tp} x {c.layout.pp} x {c.layout.dp}",
                str(c.nodes),
                short(train.tokens),
                f"{c.flops:.2e}",
                f"{c.speed.mfu:.2f}",
                f"{c.speed.bubble:.1%}" if c.layout.pp > 1 else "-",
                short(c.tokens_per_second),
                duration(c.seconds),
                f"{c.gpu_hours:,.0f}",
                f"{duration(c.event)}, {c.event * c.layout.world / 3600:.1f} GPU hours" if c.event else "-",
            ]
        )
        before = count
    return table(rows)


def _batches(costs: Sequence[Cost]) -> str:
    rows = [["steps", "tokens in a step", "ramp from", "over", "steps in all", "seconds a step", "lr", "warm-up"]]
    for c in costs:
        t = c.stage.train
        ramp = [short(t.ramp_from * t.seq_len), short(t.ramp_tokens)] if t.ramp_tokens else ["-", "-"]
        cells = [
            short(c.batch_tokens),
            *ramp,
            f"{t.steps():,}",
            f"{c.speed.seconds:.2f}",
            f"{t.lr:g}",
            short(t.warmup_tokens),
        ]
        rows.append([c.stage.name, *cells])
    return table(rows)


def _text(costs: Sequence[Cost]) -> str:
    """What becomes of documents, by the packing that a stage has (*) and by the other."""
    rows = [["text", "packing", "documents apart", "cuts a million tokens", "padding", "tokens seen"]]
    for c in costs:
        data, length = c.stage.data, c.stage.train.seq_len
        apart = "yes" if data.reset_attention else "no"
        for way, p in c.packings.items():
            mark = " *" if way == data.packing else ""
            seen = f"{p.seen:,.0f} of {length:,}" if data.reset_attention else f"{length:,}"
            rows.append([c.stage.name, way + mark, apart, f"{p.truncations:,.0f}", f"{p.padding:.2%}", seen])
    return table(rows)


def _parameters(costs: Sequence[Cost]) -> str:
    rows = [["parameters by part", *PARTS]]
    rows += [[c.stage.name, *(f"{n:,}" for n in parameters_by_part(c.arch).values())] for c in costs]
    return table(rows)


def _memory(costs: Sequence[Cost], gpu: Gpu) -> str:
    rows = [["GiB on a GPU", "micro-batch", "recompute", *MEMORY, "total", f"of {gpu.memory / 2**30:.0f}"]]
    for c in costs:
        cells = [f"{getattr(c.memory, part) / 2**30:.1f}" for part in MEMORY]
        train, total = c.stage.train, c.memory.total
        share = f"{total / gpu.memory:.0%}"
        batch = f"{train.micro_batch} x {train.seq_len:,}"
        rows.append([c.stage.name, batch, train.recompute, *cells, f"{total / 2**30:.1f}", share])
    return table(rows)


MEMORY = (
    *("weights", "gradients", "optimizer", "activations", "workspace", "buffers", "event", "teacher", "remembered"),
    "allowance",
)


def _traffic(costs: Sequence[Cost]) -> str:
    rows = [["per step and save", "GB over NVLink", "GB over the network", "checkpoint GB", "stall of a save", "saves"]]
    for c in costs:
        sent = [f"{c.speed.nvlink / 1e9:.1f}", f"{c.speed.network / 1e9:.1f}"]
        rows.append([c.stage.name, *sent, f"{c.checkpoint / 1e9:.1f}", duration(c.stall), str(c.saves)])
    return table(rows)


def _pipelines(costs: Sequence[Cost]) -> str:
    pictures = [f"{c.stage.name}\n{_indented(picture.pipeline(c.layout))}" for c in costs if c.layout.pp > 1]
    return "\n".join(["pipelines", *map(_indented, pictures)])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _suggestions(costs: Sequence[Cost], suggestions: Sequence[Sequence[Suggestion]]) -> str:
    head = ["suggested", "TP x PP x DP", "chunks a rank", "micro-batch", "recompute", "GiB on a GPU", "MFU", "tokens/s"]
    rows = [head]
    for c, fitting in zip(costs, suggestions, strict=True):
        as_it_is = Suggestion(c.layout, c.stage.train, c.memory, c.speed)
        names = [c.stage.name, *[""] * (len(fitting) - 1), "  as it is"]
        for name, s in zip(names, [*fitting, as_it_is], strict=True):
            layout = f"{s.layout.tp} x {s.layout.pp} x {s.layout.dp}"
            how = [layout, str(s.layout.virtual), str(s.train.micro_batch), s.train.recompute]
            speed = [f"{s.speed.mfu:.3f}", short(c.batch_tokens / s.speed.seconds)]
            rows.append([name, *how, f"{s.memory.total / 2**30:.1f}", *speed])
    return table(rows)


def _suggestion(s: Suggestion) -> dict[str, Any]:
    return {
        "parallel": {**s.layout.to_json(), "sequence_parallel": s.layout.sequence_parallel},
        "micro_batch": s.train.micro_batch,
        "recompute": s.train.recompute,
        "memory_bytes": s.memory.total,
        "mfu": s.speed.mfu,
    }


def _total(costs: Sequence[Cost]) -> str:
    flops, hours = cost.from_scratch(list(costs))
    grown_flops, gpu_hours = sum(c.flops for c in costs), sum(c.gpu_hours for c in costs)
    tokens = sum(c.stage.train.tokens for c in costs)
    return (
        f"In all {short(tokens)} tokens, {grown_flops:.2e} FLOPs, {gpu_hours:,.0f} GPU hours, "
        f"{duration(sum(c.seconds for c in costs))} one after the other.\n"
        f"{costs[-1].stage.name} from scratch on the same tokens: {flops:.2e} FLOPs, {hours:,.0f} GPU hours; "
        f"growing takes {grown_flops / flops:.0%} of the FLOPs and {gpu_hours / hours:.0%} of the GPU hours."
    )


def _assumptions(options: argparse.Namespace, gpu: Gpu) -> str:
    peak = PEAK_FLOPS[gpu.name]["bf16"]
    mfu = "MFU as given"
    if options.mfu == "auto":
        mfu = (
            f"MFU from that of MPT models as wide on as many GPUs as a node has ({SOURCE}), times {SINGLE} since this "
            "stack has not been measured, less recomputation, the pipeline's bubble and communication that is "
            f"not hidden ({gpu.nvlink / 1e9:.0f} GB/s within a node, {gpu.network / 1e9:.0f} to others, for each GPU); "
            "measure yours (mfu in metrics.jsonl) and give it with --mfu"
        )
    return (
        f"Assumed: {gpu.name}, {peak / 1e12:.0f} dense bf16 TFLOP/s.\n{mfu}.\n"
        f"{STORAGE / 1e9:.0f} GB/s between a node and storage, {HOST / 1e9:.0f} GB/s between a GPU and its host.\n"
        "FLOPs and MFU are of the model: nothing that is computed again counts. Parts at rate 0 count as trained.\n"
        "Where data.reset_attention keeps documents apart, attention is counted by the first documents of the corpus, "
        "or in full if it is not there.\n"
        "Tokens are of each stage's own vocabulary. Time is without queues, restarts and validations."
    )


def _too_large(c: Cost, gpu: Gpu) -> str:
    remedies = cost.remedies(c, gpu)
    advice = (
        "; ".join(remedies) if remedies else "no single change of its layout does: use more GPUs for a replica (tp, pp)"
    )
    return (
        f"stage {c.stage.name!r} needs {c.memory.total / 2**30:.0f} GiB on a GPU of {gpu.memory / 2**30:.0f}; it would "
        f"fit with {advice}"
    )


def _data(costs: Sequence[Cost]) -> dict[str, Any]:
    flops, hours = cost.from_scratch(list(costs))
    stages = [
        {
            "stage": c.stage.name,
            "parameters": c.arch.parameters(),
            "parts": parameters_by_part(c.arch),
            **({"blocks": in_words(c.arch)} if in_words(c.arch) else {}),
            "layout": c.layout.to_json(),
            "nodes": c.nodes,
            "tokens": c.stage.train.tokens,
            **({"packings": {way: asdict(p) for way, p in c.packings.items()}} if c.packings else {}),
            "steps": c.stage.train.steps(),
            "flops": c.flops,
            "hardware_flops": c.hardware_flops,
            "mfu": c.speed.mfu,
            "bubble": c.speed.bubble,
            "tokens_per_second": c.tokens_per_second,
            "seconds": c.seconds,
            "gpu_hours": c.gpu_hours,
            "event_seconds": c.event,
            "checkpoint_bytes": c.checkpoint,
            "checkpoints": c.saves,
            "stall_seconds": c.stall,
            "nvlink_bytes_per_step": c.speed.nvlink,
            "network_bytes_per_step": c.speed.network,
            "memory_bytes": {**{part: getattr(c.memory, part) for part in MEMORY}, "total": c.memory.total},
        }
        for c in costs
    ]
    return {"stages": stages, "from_scratch": {"flops": flops, "gpu_hours": hours}}


def _mfu(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UserError(f"--mfu {text}: give a share of the peak between 0 and 1, such as 0.45, or auto")
    return value


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

"""Measures Cambium against yardsticks that are timed in the same run, and prints ratios.

examples:
  OMP_WAIT_POLICY=passive python tools/bench.py step
  python tools/bench.py step --hidden 512 --heads 8 --layers 8 --ffn 1408 --precision bf16 --json
  python tools/bench.py step --generations 1,2,4,8
  python tools/bench.py grow --only hidden
  python tools/bench.py published
  python tools/bench.py rates --corpus data/kjv --out runs/rates
  python tools/bench.py recovery --kills 30 --cluster 5
  python tools/bench.py store --folder /scratch
  python tools/bench.py data --seq-len 512
  python tools/bench.py documents --documents 1000000
  python tools/bench.py prepare --workers 4
  python tools/bench.py teacher --seq-len 512
  python tools/bench.py spans --seq-len 4096
  python tools/bench.py gpu --minutes 5 --output runs/gpu
"""

import argparse
import importlib
import os
import sys
import warnings

BENCHMARKS = {
    "data": "samples a second against Megatron-core's data sets",
    "documents": "memory of a rank that reads a corpus of many documents",
    "gpu": "MFU, tokens a second, memory and what the time goes into, on one GPU",
    "grow": "growth plans in memory against a plain copy, per operator",
    "prepare": "a pipeline's text made into shards, against the tokenizer alone",
    "published": "published rules of growth beside the operators here, on one trained model",
    "rates": "the best learning rate by width, with train.mup and without it, on real text",
    "recovery": "from the kill of a rank, or a power cut, to the next optimizer step",
    "spans": "attention whose heads have spans, against attention over everything",
    "step": "a training step against bare Megatron-core and transformers, or of several generations",
    "teacher": "a step with a teacher against one without, and the teacher's forward pass",
    "store": "saves, loads and offline growth against cp + fsync, PyTorch DCP and DeepSpeed",
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    # Before torch is imported: spinning threads would slow whatever else the machine does, and the steps with it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings(
        "ignore", module=r"megatron|torch|deepspeed"
    )  # they warn of packages that are not needed here
    from pretrain.cli import command

    parser = command.make_parser(__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="{" + ",".join(BENCHMARKS) + "}")
    for name, purpose in BENCHMARKS.items():
        module = importlib.import_module(f"benchmarks.{name}")
        subparser = commands.add_parser(
            name, help=purpose, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print the figures as JSON")
        subparser.set_defaults(run=module.run)
    options = parser.parse_args(arguments)

    def work() -> int:
        report = options.run(options)
        command.say(report.to_json() if options.json else str(report))
        return 0

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main())

"""Tasks of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) on a model in Hugging Face's format."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pretrain.errors import UserError
from pretrain.runtime.documents import one_line

FILES = (".yaml", ".yml")
EXAMPLES_SEED = 1234  # lm-eval's
RESAMPLES = 1000  # for the error of a median and the like, in this process: training has the other cores


def is_file(task: str) -> bool:
    """Whether a task is named by a file of one's own, and not by its name in lm-eval."""
    return task.endswith(FILES)


def require() -> None:
    """Raises UserError where lm-eval is not installed; quick."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks need lm-eval, which is not installed: pip install 'cambium[eval]'")


def check_files(tasks: Sequence[str], what: str) -> None:
    """Raises UserError, which begins with `what`, for a task whose file is not there."""
    for task in filter(is_file, tasks):
        if not Path(task).is_file():
            raise UserError(f"{what}: {task} is not there: a task is a name of lm-eval, or a YAML file of its format")


def evaluate(
    export: Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch: int = 8,
    device: str = "cpu",
    trusted: bool = False,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The results of tasks, by name, on the causal model in a Hugging Face folder; and of those that failed, why.

    A result has `metrics` (by name; behind a slash the filter, if it has one), `errors` (the standard error of those
    that have one), `samples` and `fewshot`. tasks: names of lm-eval, and YAML files, whose relative paths are from
    their own folder; a group gives a result for each task in it as well. limit: of samples of each. fewshot: examples
    before each sample, instead of the task's own number. trusted: run the code in the folder. Raises UserError for a
    folder that transformers cannot load.
    """
    require()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    torch.manual_seed(EXAMPLES_SEED)
    manager = TaskManager(include_defaults=not all(map(is_file, tasks)))
    try:
        model = HFLM(str(export), device=device, dtype="auto", batch_size=batch, trust_remote_code=trusted)
    except Exception as error:  # transformers raises almost anything for a damaged folder
        raise UserError(f"{export}: transformers cannot load this model: {_words(error)}") from error
    results: dict[str, dict[str, Any]] = {}
    failed = {}
    for task in tasks:
        path = Path(task)
        place: Any = contextlib.chdir(path.parent) if is_file(task) else contextlib.nullcontext()
        try:
            with place, contextlib.redirect_stdout(sys.stderr):
                loaded = manager.load([path.name if is_file(task) else task])
                for one in loaded["tasks"].values():
                    _set_examples(one, fewshot)
                answer = lm_eval.evaluate(model, loaded, limit=limit, log_samples=False, bootstrap_iters=RESAMPLES)
        except Exception as error:  # a task may be anybody's, and its data on a network that is not there
            failed[task] = _words(error)
            continue
        results |= {name: _result(name, answer) for name in answer["results"]}
    return results, failed


def _set_examples(task: Any, fewshot: int | None) -> None:
    """How many examples come before a sample, and which, as lm-eval's own command line has it: a task that says 0
    means it."""
    own = task.get_config("num_fewshot")
    if own is None or (own and fewshot is not None):
        task.set_config(key="num_fewshot", value=fewshot or 0)
    task.set_fewshot_seed(seed=EXAMPLES_SEED)


def release() -> str:
    """The version of lm-eval, which decides what a task is."""
    return version("lm-eval")


def _result(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in answer["results"][name].items():
        metric, comma, filtered = key.partition(",")
        if not comma or not isinstance(value, int | float) or not math.isfinite(value):
            continue  # its alias and the like; a metric without an error has N/A; a perplexity may be infinite
        known = errors if metric.endswith("_stderr") else metrics
        known[metric.removesuffix("_stderr") + ("" if filtered == "none" else f"/{filtered}")] = float(value)
    samples = answer.get("n-samples", {}).get(name, {}).get("effective")
    return {"metrics": metrics, "errors": errors, "samples": samples, "fewshot": answer.get("n-shot", {}).get(name)}


def _words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {' '.join(str(error).split())}")

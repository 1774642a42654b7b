"""The rules that a document must pass, by the names that they have in a pipeline's file.

A rule is a class of datatrove's or of this module, and its options are the arguments of its constructor.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter

from pretrain.config.reading import did_you_mean, join_problems
from pretrain.errors import UserError
from pretrain.prepare.report import Removed
from pretrain.prepare.words import WORDS

JUDGED = 4000  # characters of which the language is told


class Language(BaseFilter):
    """Keeps documents of some languages, told by py3langid (Lui and Baldwin, 2012), whose model is in its package."""

    name = "language"

    def __init__(self, keep: Sequence[str] = ("en",), least: float = 0.5, exclusion_writer: Any = None) -> None:
        """keep: codes of ISO 639-1. least: the least probability of the language, of 0 to 1.

        Raises UserError for a language that the model does not know.
        """
        super().__init__(exclusion_writer)
        self.keep, self.least = list(keep), least
        if unknown := sorted(set(self.keep) - set(self._identifier.labels)):
            raise UserError(f"keep: no language that is known: {', '.join(unknown)}; give codes such as en, de or zh")
        del self._identifier  # which other processes load for themselves

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether the beginning of a document is in one of the languages."""
        language, probability = self._identifier.classify(doc.text[:JUDGED])
        if language not in self.keep:
            return False, str(language)
        return probability >= self.least or (False, f"{language}, below {self.least}")


class Python(BaseFilter):
    """Keeps what a function of a Python file says: of a text, True to keep it, or else the reason as a word."""

    name = "python"

    def __init__(self, file: str = "", function: str = "keep", exclusion_writer: Any = None) -> None:
        """Raises UserError for a file that cannot be run, or has no such function."""
        super().__init__(exclusion_writer)
        self.file, self.function = file, function
        _ = self._call
        del self._call  # which other processes load for themselves

    @cached_property
    def _call(self) -> Any:
        if not Path(self.file).is_file():
            raise UserError(f"file: there is no file {self.file!r}; give a Python file with a function {self.function}")
        spec = importlib.util.spec_from_file_location("pipeline_rule", self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"file: {self.file} fails as it is loaded: {type(error).__name__}: {error}") from error
        if not callable(call := getattr(module, self.function, None)):
            raise UserError(f"function: {self.file} has no function {self.function!r}")
        return call

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """What the function says. Raises UserError for an error in it."""
        try:
            answer = self._call(doc.text)
        except Exception as error:
            raise UserError(
                f"{self.file}: {self.function} fails for {doc.id}: {type(error).__name__}: {error}"
            ) from error
        return answer is True or (False, str(answer) if answer else self.function)


RULES: dict[str, type[BaseFilter]] = {
    "language": Language,
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
    "python": Python,
}
OURS = ("self", "exclusion_writer", "language")  # arguments that are no options


def make_rules(filters: Sequence[Mapping[str, Any]], folder: Path, samples: int, where: str) -> list[BaseFilter]:
    """The steps of the rules in a file, which count what they remove in a folder.

    Raises UserError, with the place in the file, for a rule or an option that is unknown or cannot be used.
    """
    problems, steps = [], []
    for number, entry in enumerate(filters):
        if len(entry) != 1 or not isinstance(options := next(iter(entry.values())) or {}, Mapping):
            problems.append(f"filters[{number}]: give one rule and its options, such as language: {{keep: [en]}}")
            continue
        (name,) = entry
        if name not in RULES:
            problems.append(
                f"filters[{number}]: {name}: unknown step{did_you_mean(name, RULES)} (known steps: {', '.join(RULES)})"
            )
            continue
        wrong = list(_problems(name, options))
        problems += [f"filters[{number}].{name}.{problem}" for problem in wrong]
        if not wrong:
            try:
                steps.append(_make(RULES[name], options, Removed(folder, f"{number + 1}. {name}", samples)))
            except UserError as error:
                problems.append(f"filters[{number}].{name}.{error}")
    if problems:
        raise UserError(join_problems(where, problems))
    return steps


def _options(rule: type[BaseFilter]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(rule).parameters.items() if name not in OURS}


def _problems(name: str, options: Mapping[str, Any]) -> list[str]:
    known, lines = _options(RULES[name]), []
    for key, value in options.items():
        if key not in known:
            lines.append(f"{key}: unknown key{did_you_mean(key, known)} (known keys: {', '.join(known)})")
        elif not _fits(value, known[key]):
            lines.append(f"{key}: {value!r:.100} is of another kind than its default, {known[key].default!r:.100}")
    return lines


def _fits(value: Any, option: inspect.Parameter) -> bool:
    kinds: dict[type, Any] = {bool: bool, int: (int, float), float: (int, float), str: str}
    if value is None:
        return option.default is None or "None" in str(option.annotation)
    if type(option.default) in kinds:
        return isinstance(value, kinds[type(option.default)]) and isinstance(value, bool) == isinstance(
            option.default, bool
        )
    return isinstance(value, list)


def _make(rule: type[BaseFilter], options: Mapping[str, Any], removed: Removed) -> BaseFilter:
    words = {"language": WORDS} if "language" in inspect.signature(rule).parameters else {}
    return rule(**options, **words, exclusion_writer=removed)

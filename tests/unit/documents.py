"""Reading documents: their code, links, and what these name. A document is Markdown, or the comments in a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = "growth|pretrain|tools|configs|docs|tests|slurm"
PATH = re.compile(rf"(?<![\w/.~-])(?:(?:{ROOMS})/[\w./*-]*\w/?|(?:{ROOMS})/|\.ci/run)")
DOTTED = re.compile(r"(?<![\w/.-])(?:growth|pretrain|tools|tests)(?:\.\w+)+(?!\w*/)")
DEFINED = re.compile(r"`(\w+)`(?: in| of|,) \[?`([\w/]+\.py)`")
COPIED = re.compile(r"\bcp \S+ (\S+)")
COMMAND = re.compile(r"(?:python3?|bash|sbatch [^`\n]*?)(?: (?P<module>-m) | )(?P<program>[\w./]+)(?P<rest>[^`\n]*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MAKE = re.compile(r"(?<![\w-])make ([a-z][a-z-]*)")
PLACEHOLDER = re.compile(r"(?<![A-Za-z])[A-Z][A-Z_]+(?![A-Za-z])")


@dataclass(frozen=True)
class Document:
    """text: all of it, with continued lines joined. code: its code blocks and spans, or all of a file of comments."""

    path: Path
    text: str
    code: tuple[str, ...]
    spans: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))


def markdown(path: Path) -> Document:
    """A Markdown file."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n)+", prose, re.MULTILINE)
    prose = re.sub(r"^    .*\n", "", prose, flags=re.MULTILINE)
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    return Document(path, text, (*fenced, *indented, *spans), tuple(spans))


def comments(path: Path) -> Document:
    """The comments of a file of YAML, of a shell or of make."""
    lines = re.findall(r"(?:^|\s)#[# ]?(.*)", path.read_text())
    text = "\n".join(lines)
    return Document(path, text, (text,), tuple(re.findall(r"`([^`]+)`", text)))


def paths(document: Document) -> Iterator[str]:
    """Paths from the root of the repository, with `*` for what is to be filled in; but those that the reader makes."""
    made = COPIED.findall(document.text)
    for code in document.code:
        yield from (PLACEHOLDER.sub("*", found) for found in PATH.findall(code) if found not in made)
    for span in document.spans:
        if re.fullmatch(r"[\w/]+\.(?:py|sh)", span) and not PATH.fullmatch(span):
            yield span


def there(path: str, document: Document) -> bool:
    """Whether a path is one of the repository, from its root or from the document's folder."""
    folders = (ROOT, document.path.parent)
    return any(any(folder.glob(path)) if "*" in path else (folder / path).exists() for folder in folders)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken(link: str, document: Document) -> bool:
    """Whether a link leads to no file, or to no heading of it."""
    file, _, anchor = link.partition("#")
    target = (document.path.parent / file).resolve() if file else document.path
    if not target.exists():
        return True
    headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else []
    return bool(anchor) and anchor not in map(slug, headings)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What the statements of a module or a class define or import."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def module(name: str) -> Path | None:
    """The file of a module or of a package's `__init__`."""
    path = ROOT / name.replace(".", "/")
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()), None)


def defined(dotted: str) -> bool:
    """Whether a dotted name is that of a module, of what one defines, or of a member of that."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        file = module(name)
        if file is None and not (ROOT / name.replace(".", "/")).is_dir():
            continue
        body = tree(file).body if file else []
        for part in parts[end:]:
            node = names(body).get(part)
            if node is None:
                return False
            body = node.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                return True
        return True
    return False


@dataclass(frozen=True)
class Command:
    """A program of the repository and the rest of its line."""

    program: Path
    rest: str

    @property
    def options(self) -> list[str]:
        return re.findall(r"(?<![\w-])--[\w.-]*\w", self.rest)


def commands(document: Document) -> Iterator[Command]:
    """The command lines in a document that start a program of the repository."""
    for code in document.code:
        for found in COMMAND.finditer(code):
            given, rest = found["program"], re.split(r"\s#|[;|&)]", found["rest"])[0]
            if found["module"]:
                if given.split(".")[0] not in ("growth", "pretrain", "tools"):
                    continue
                package = ROOT / given.replace(".", "/") / "__main__.py"
                path = package if package.exists() else ROOT / f"{given.replace('.', '/')}.py"
            elif re.match(rf"(?:{ROOMS}|\.ci)/", given):
                path = ROOT / given
            else:
                continue
            yield Command(path, rest)


@cache
def accepted(program: Path) -> frozenset[str]:
    """The options of a program: those that its parser is given, or that a shell script spells."""
    if program.suffix != ".py":
        return frozenset(re.findall(r"--[\w-]+", program.read_text())) | {"--help"}
    files = [program, ROOT / "pretrain/cli/command.py"]
    if program.name == "bench.py":
        files += (ROOT / "tools/benchmarks").rglob("*.py")
    calls = [node for file in files for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    added = [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"]
    words = [a.value for call in added for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return frozenset(word for word in words if word.startswith("--")) | {"--help"}


def docstrings(path: Path) -> Document:
    """The docstrings of a module, and the sentences under its constants."""
    nodes = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Expr)]
    found = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return Document(path, "\n".join(found), tuple(found), ())

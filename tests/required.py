"""python tests/required.py RESULT.xml ...: have the suites of required.txt run, by the JUnit files that pytest wrote?

Tests that were skipped, failed or were never collected do not count: a suite of which nothing is left is no success.
Exit code 1, with a line for each suite of which too few passed.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

OTHERWISE = ("skipped", "failure", "error")
LIST = Path(__file__).with_name("required.txt")


def passed(results: Iterable[Path]) -> list[str]:
    """The modules of the tests that passed, one for each test, such as tests.unit.test_imports."""
    cases = (case for path in results for case in ElementTree.parse(path).iter("testcase"))
    return [case.get("classname", "") for case in cases if not any(case.find(how) is not None for how in OTHERWISE)]


def missing(required: str, modules: Sequence[str]) -> Iterator[str]:
    """One line for each suite of which fewer tests passed than required, if this machine can have it."""
    for line in required.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        suite, least, *able = line.split(maxsplit=2)
        count = sum(f"{module}.".startswith(suite.replace("/", ".") + ".") for module in modules)
        if count < int(least) and not (able and subprocess.run(["bash", "-c", *able], check=False).returncode):
            yield f"{suite}: {count} tests passed, and {least} must have, by {LIST.name}"


if __name__ == "__main__":
    problems = list(missing(LIST.read_text(), passed(map(Path, sys.argv[1:]))))
    print("\n".join(f"error: {problem}" for problem in problems) or "every suite that must run has run")
    sys.exit(bool(problems))

"""Print how large the source is: files, bodies, refusals, comments; of two commits side by side.

    python benchmarks/sizes.py                     # the working tree
    python benchmarks/sizes.py 499aabd HEAD        # two commits, a column each

A code line is one that is not blank, not a comment and not part of a docstring. A refusal is a `raise`,
an `if` or `except` that only raises, and a call of `require` or `refuse...`; its share is of code lines.
A body is a function without its signature and docstring. Tests are counted apart, and no more.
"""

import argparse
import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFUSING = re.compile(r"_?(require|refuse)(_\w+)?")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_LINES, MOST_BODY = 500, 60  # of a file and of a function's body


@dataclass
class Source:
    """What one file holds, as numbers."""

    path: str
    lines: int
    code: set[int]
    comments: int
    refusals: set[int]
    bodies: dict[str, int] = field(default_factory=dict)


def read(path: str, text: str) -> Source:
    """Measure one file of Python."""
    code: set[int] = set()
    comments = 0
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += 1
        elif token.type not in skipped:
            code.update(range(token.start[0], token.end[0] + 1))
    source = Source(path, text.count("\n"), code, comments, set())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            code.difference_update(_lines(node.body[0]))
        if _refuses(node):
            source.refusals.update(_lines(node))
        if isinstance(node, FUNCTIONS):
            statements = node.body[1:] if ast.get_docstring(node) else node.body
            lines = _lines(statements[-1]).stop - statements[0].lineno if statements else 0
            source.bodies[f"{path}:{node.lineno} {node.name}"] = lines
    source.refusals &= code
    return source


def _lines(node: ast.AST) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)  # type: ignore[attr-defined]


def _refuses(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, (ast.If, ast.ExceptHandler)):
        branches = [*node.body, *getattr(node, "orelse", [])]
        return all(isinstance(statement, ast.Raise) for statement in branches)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        name = getattr(called, "attr", getattr(called, "id", ""))
        return bool(REFUSING.fullmatch(name))
    return False


def paths_of(commit: str | None) -> list[str]:
    """Every file of a commit, or of the working tree."""
    if commit is not None:
        return _git("ls-tree", "-r", "--name-only", commit).splitlines()
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return [path for path in listed if (ROOT / path).is_file()]


def files_of(commit: str | None) -> Iterator[tuple[str, str]]:
    """Path and text of every file of Python."""
    for path in paths_of(commit):
        if path.endswith(".py") and not path.startswith("checkpoints/"):  # copies of the root's
            yield path, _git("show", f"{commit}:{path}") if commit else (ROOT / path).read_text()


def _git(*words: str) -> str:
    command = ["git", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def measure(commit: str | None) -> tuple[dict[str, str], list[str]]:
    """The table's cells of one commit, and what is over the house's sizes."""
    everything = [read(path, text) for path, text in files_of(commit)]
    tests = [source for source in everything if source.path.startswith("tests/")]
    source = [source for source in everything if not source.path.startswith("tests/")]
    bodies = {name: length for s in source for name, length in s.bodies.items()}
    lengths = sorted(bodies.values())
    code = sum(len(s.code) for s in source)
    cells = {
        "source files": str(len(source)),
        "source lines": f"{sum(s.lines for s in source):,}",
        "source code lines": f"{code:,}",
        "test code lines": f"{sum(len(s.code) for s in tests):,}",
        f"files over {MOST_LINES} lines": str(sum(s.lines > MOST_LINES for s in source)),
        "body, largest": str(lengths[-1]),
        "refusals, % of code": f"{100 * sum(len(s.refusals) for s in source) / code:.1f}",
        "comments per 100 code lines": f"{100 * sum(s.comments for s in source) / code:.1f}",
    }
    too_long = [f"{s.path}: {s.lines} lines" for s in source if s.lines > MOST_LINES]
    too_long += [f"{name}: {n} lines of body" for name, n in bodies.items() if n > MOST_BODY]
    return cells, too_long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commits", nargs="*", help="up to two; the working tree if none")
    commits = parser.parse_args().commits or [None]
    measured = [measure(commit) for commit in commits]
    names = [commit or "working tree" for commit in commits]
    print(f"{'':36}" + "".join(f"{name:>16}" for name in names))
    for row in measured[0][0]:
        print(f"{row:36}" + "".join(f"{cells[row]:>16}" for cells, _ in measured))
    for line in measured[-1][1]:
        print(f"over the house's sizes: {line}")


if __name__ == "__main__":
    main()

"""Every public function, class and method says what it does, and no "Args" names what is not there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*_mtmm.py"),
        ROOT / "train_accelerate.py",
        *(ROOT / "mtmm_training").rglob("*.py"),
    )
)
# `main` is described by its module; the others are the names by which torch, transformers and
# accelerate call them, described there.
ELSEWHERE = {
    "main",
    "forward",
    "get_input_embeddings",
    "set_input_embeddings",
    "preprocess",
    "postprocess",
    "model_input_names",
    "state_dict",
    "load_state_dict",
}
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# What a line of "Args" begins with: `name:`, `name, other:`, `*names:`, or `name (`type`):`.
ENTRY = re.compile(r"^ {4}((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: \(.*?\))?:\s*(.*)")


def public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Public definitions by qualified name; none inside of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def entries(docstring: str) -> list[tuple[list[str], str]]:
    """The section "Args": names and the first line of what is said of them, in their order."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    found = (ENTRY.match(line) for line in section.splitlines())
    return [
        ([name.lstrip("*") for name in entry[1].split(", ")], entry[2]) for entry in found if entry
    ]


def documented_arguments(docstring: str) -> list[str]:
    return [name for names, _ in entries(docstring) for name in names]


def accepted_arguments(node: Documented) -> set[str]:
    """Parameters of a function; of a class, its fields and those of its `__init__`."""
    if not isinstance(node, ast.ClassDef):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        return {argument.arg for argument in every if argument is not None} - {"self", "cls"}
    names: set[str] = set()
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            names.add(member.target.id)
        elif isinstance(member, ast.FunctionDef) and member.name == "__init__":
            names |= accepted_arguments(member)
    return names


def parsed(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_public_names_have_docstrings(module: Path) -> None:
    tree = parsed(module)
    assert ast.get_docstring(tree), f"{module} has no docstring"
    bare = [
        f"{module}:{node.lineno} {name}"
        for name, node in public(tree)
        if node.name not in ELSEWHERE and not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_documented_arguments_exist(module: Path) -> None:
    unknown = [
        f"{module}:{node.lineno} {name} has no `{argument}`"
        for name, node in public(parsed(module))
        for argument in documented_arguments(ast.get_docstring(node) or "")
        if argument not in accepted_arguments(node)
    ]
    assert unknown == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_documented_arguments_are_complete(module: Path) -> None:
    """Who begins to list arguments lists them all: a reader takes the list for the whole."""
    missing = []
    for name, node in public(parsed(module)):
        listed = documented_arguments(ast.get_docstring(node) or "")
        if listed and not isinstance(node, ast.ClassDef):
            lacking = sorted(accepted_arguments(node) - set(listed))
            missing += [f"{module}:{node.lineno} {name} leaves out {lacking}"] if lacking else []
    assert missing == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_documented_arguments_say_what_they_are(module: Path) -> None:
    """ "Factor on the products", not "Of the products": a reader sees the entry alone."""
    riddles = [
        f"{module}:{node.lineno} {name}: `{', '.join(names)}` begins with {said!r}"
        for name, node in public(parsed(module))
        for names, said in entries(ast.get_docstring(node) or "")
        if said.startswith("Of ")
    ]
    assert riddles == []


def test_sections_are_read_as_written() -> None:
    text = """Summary.

Args:
    one: The first.
        more: not a name.
    two, three (`int`): Both.
    **rest: Others.

Returns:
    nothing: at all.
"""
    assert documented_arguments(text) == ["one", "two", "three", "rest"]

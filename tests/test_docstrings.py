"""Public names say what they do, and their "Args" name every argument, and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT

MODULES = sorted(
    path.relative_to(CHECKOUT)
    for path in (
        *CHECKOUT.glob("*_mtmm.py"),
        CHECKOUT / "train_accelerate.py",
        *(CHECKOUT / "mtmm_training").rglob("*.py"),
    )
)
# torch, transformers and accelerate call these names, and describe them.
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
VERB = {
    "add_flags",
    "run",
}  # of every module of a verb; mtmm_training/commands/cli.py describes them
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


def entries(docstring: str) -> dict[str, str]:
    """The section "Args": each name, and the first line of what is said of it."""
    _, _, rest = docstring.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    found = (ENTRY.match(line) for line in section.splitlines())
    return {name.lstrip("*"): entry[2] for entry in found if entry for name in entry[1].split(", ")}


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


def faults(node: Documented, elsewhere: set[str]) -> Iterator[str]:
    """What a definition's docstring lacks or says wrongly."""
    docstring = ast.get_docstring(node)
    if not docstring and node.name not in elsewhere:
        yield "has no docstring"
    listed, accepted = entries(docstring or ""), accepted_arguments(node)
    yield from (f"has no argument {name}" for name in sorted(set(listed) - accepted))
    if listed and not isinstance(node, ast.ClassDef):  # a reader takes the list for the whole
        yield from (f"does not list {name}" for name in sorted(accepted - set(listed)))
    for name, said in listed.items():
        if said.startswith("Of "):  # "Factor on the products", not "Of the products"
            yield f"does not say what {name} is: {said}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_public_names_are_described(module: Path) -> None:
    tree = ast.parse((CHECKOUT / module).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    elsewhere = ELSEWHERE | (VERB if module.parent.name == "commands" else set())
    found = [
        f"{module}:{node.lineno} {name} {fault}"
        for name, node in public(tree)
        for fault in faults(node, elsewhere)
    ]
    assert found == []


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
    read = {"one": "The first.", "two": "Both.", "three": "Both.", "rest": "Others."}
    assert entries(text) == read

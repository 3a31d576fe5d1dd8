"""Nothing outside `patches/` changes vLLM's code or its objects."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import netloader.vllm_plugin

PLUGIN = Path(netloader.vllm_plugin.__file__).parent
DATA = {
    *(("load/load_state.py", "adopt"), ("load/processed.py", "adopt_numbers")),
    ("load/reload.py", "_fill"),
}
"""Functions that put values or tensors of a server into the client's model: data, and no code."""


def changes(source: str, file: str = "") -> Iterator[str]:
    """Each statement that changes a class, a module or an object of vLLM's behind its back."""
    tree = ast.parse(source)
    foreign = set(_from_vllm(tree))
    for function, node in _with_functions(tree):
        if isinstance(node, ast.Call) and _name(node.func) in ("setattr", "delattr"):
            if (file, function) not in DATA:
                yield f"{file}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            targets = getattr(node, "targets", None) or [node.target]  # type: ignore[union-attr]
            for target in targets:
                if _is_foreign(target, foreign):
                    yield f"{file}:{node.lineno}: {ast.unparse(node)}"


def _from_vllm(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm"):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.asname or a.name for a in node.names if a.name.startswith("vllm"))


def _with_functions(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef) else function
        yield inside, child
        yield from _with_functions(child, inside)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_foreign(target: ast.AST, foreign: set[str]) -> bool:
    """Whether a target is in a dictionary of attributes, or in something imported from vLLM."""
    if isinstance(target, ast.Subscript):
        held = target.value
        by_call = isinstance(held, ast.Call) and _name(held.func) == "vars"
        return by_call or (isinstance(held, ast.Attribute) and held.attr == "__dict__")
    while isinstance(target, ast.Attribute):
        target = target.value
        if _name(target) in foreign:
            return True
    return False


@pytest.mark.parametrize(
    "change",
    [
        "from vllm import Worker\nWorker.sleep = 1",
        "import vllm\nvllm.worker.sleep = 1",
        "from vllm import Worker\ndel Worker.sleep",
        "setattr(kind, 'sleep', 1)",
        "vars(model)['load_weights'] = 1",
        "model.__dict__['load_weights'] = 1",
    ],
)
def test_a_change_is_seen(change: str) -> None:
    assert len(list(changes(change))) == 1


def test_nothing_else_changes_vllm() -> None:
    found = [
        line
        for path in PLUGIN.rglob("*.py")
        if path.relative_to(PLUGIN).parts[0] != "patches"
        for line in changes(path.read_text(), path.relative_to(PLUGIN).as_posix())
    ]
    assert found == []

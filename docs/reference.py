"""The page docs/embed/reference.md: signatures and docstrings of the public names."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from enum import Enum
from types import ModuleType

MODULES = ("netloader", "netloader.aio", "netloader.wire", "netloader.testing")
INTRODUCTION = """# Reference

Generated from the docstrings by `make docs`; do not edit. The [guide](guide.md) has examples, the
[glossary](../glossary.md) the words."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for module in map(importlib.import_module, MODULES):
        parts += [f"## {module.__name__}", _text(module)]
        for name in module.__all__:
            parts += _entry(name, getattr(module, name))
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(name: str, value: object) -> Iterator[str]:
    """A name with all that is told of it."""
    yield f"### {name}"
    if inspect.isclass(value) or inspect.isfunction(value):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
        yield _text(value)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _code(_signature(node))
        elif isinstance(node, ast.ClassDef):
            yield from _class(node, value)
    elif isinstance(value, ModuleType):
        yield f"The module `{value.__name__}`: {_text(value)}"
    else:
        words = f"{name} = {value!r}".replace("netloader.", "")
        yield "```text\n" + textwrap.fill(words, 96, subsequent_indent="    ") + "\n```"


def _class(node: ast.ClassDef, value: object) -> Iterator[str]:
    """The fields and the public methods of a class."""
    rows = list(_fields(node))
    if isinstance(value, type) and issubclass(value, Enum):
        yield "Members: " + ", ".join(f"`{member.name}`" for member in value) + "."
    elif rows:
        yield "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])
    for method in node.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if method.name == "__init__" or not method.name.startswith("_"):
            yield _code(_signature(method))
            yield textwrap.dedent(ast.get_docstring(method) or "")


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """A row for each annotated public field; a string below a field tells its meaning."""
    for field, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if field.target.id.startswith("_"):
            continue
        told = following.value if isinstance(following, ast.Expr) else None
        meaning = str(told.value) if isinstance(told, ast.Constant) else ""
        kind = ast.unparse(field.annotation)
        if isinstance(field.value, ast.Constant | ast.Name | ast.Tuple):
            kind += f" = {ast.unparse(field.value)}"
        kind = kind.replace("|", "\\|")
        yield f"| `{field.target.id}` | `{kind}` | {' '.join(meaning.split())} |"


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    words = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    marks = "".join(f"@{ast.unparse(mark)}\n" for mark in node.decorator_list)
    short = f"{marks}{words} {node.name}({ast.unparse(node.args)}){returned}"
    if len(short) <= 90:
        return short
    arguments = ast.unparse(node.args)
    return f"{marks}{words} {node.name}(\n    {arguments}\n){returned}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _text(value: object) -> str:
    return inspect.getdoc(value) or ""

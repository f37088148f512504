"""Which code decides a result: a module and all modules of the toolkit that it imports, directly or not, now
or later.

It serves the workflow's rules (an edit of a module re-runs what it decides), the records (`code`) and the
keys of the store of statistics. Imports are read from the syntax tree, those inside of functions too; nothing
is imported.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from toolkit.files import sha256

HERE = Path(__file__).parent
PACKAGE = HERE.name
# What reports on a run or writes down what others computed: an edit there changes no result.
PASSIVE = {
    f"{PACKAGE}.{name}"
    for name in (
        "code",
        "contest.records",
        "errors",
        "progress",
        "terminal",
        "train.monitor",
        "train.trackers",
    )
}


def file_of(name: str) -> Path | None:
    """The file of a module or package of the toolkit; None for what is neither."""
    first, *parts = name.split(".")
    if first != PACKAGE:
        return None
    path = HERE.joinpath(*parts)
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if parts and file.is_file()), None
    )


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement, those inside of others too; `ast.walk` would also visit the expressions, twelve of
    thirteen nodes."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            if isinstance(inner := getattr(node, field, None), list):
                waiting += inner


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules of the toolkit that a file imports from; KeyError for a module that does not exist.

    Of a package on the way to a module nothing is taken to matter.
    """
    relative = file.relative_to(HERE).with_suffix("").parts
    package = [PACKAGE, *relative[: len(relative) - 1]]
    names = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                names.add(f"{base}.{alias.name}" if file_of(f"{base}.{alias.name}") else base)
    modules = {name for name in names if name.partition(".")[0] == PACKAGE}
    if unknown := sorted(name for name in modules if not file_of(name)):
        raise KeyError(f"{file} imports {unknown[0]}, where there is no module of that name")
    return frozenset(modules)


def closure(*names: str) -> list[Path]:
    """Files of the modules `names` and of all that they import, sorted; PASSIVE modules are left out.
    KeyError for an unknown name."""
    files: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in files or name in PASSIVE:
            continue
        if (file := file_of(name)) is None:
            raise KeyError(name)
        files[name] = file
        waiting += imports(file)
    return sorted(files.values())


def digest(*names: str) -> str:
    """SHA-256 over names and contents of the closure of `names`, and of the tables (YAML) of its packages."""
    modules = closure(*names)
    packages = [path.parent for path in modules if path.stem == "__init__"]
    tables = (table for package in packages for table in sorted(package.glob("*.yaml")))
    files = ((path.relative_to(HERE).as_posix(), path) for path in (*modules, *tables))
    return hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in files).encode()).hexdigest()

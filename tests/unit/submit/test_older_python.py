"""What packages run is older than what the project needs: scoring code keeps to Python 3.10."""

import ast
from collections.abc import Iterator
from pathlib import Path

import hai

ROOT = Path(hai.__file__).parents[1]
ROOTS = ("hai.predict.run", "hai.predict.score", "hai.predict.ahead", "hai.models", "hai.faces.mtcnn", "hai.live")
NEWER = {"tomllib", "datetime.UTC", "enum.StrEnum", "typing.Self", "typing.Never", "typing.assert_never"}
NEWER |= {"typing.LiteralString", "typing.Unpack", "contextlib.chdir", "asyncio.TaskGroup", "http.HTTPMethod"}


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Yield what a module imports when it is imported itself."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            inner = [] if isinstance(node, ast.FunctionDef) else getattr(node, "body", [])
            yield from imported(inner)


def test_scoring_imports_nothing_that_python_3_10_lacks() -> None:
    todo, seen = list(ROOTS), set[str]()
    while todo:
        module = todo.pop()
        file = file_of(module)
        if file is None or module in seen:
            continue
        seen.add(module)
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
        names = set(imported(tree.body))
        assert not names & NEWER, module
        todo += [name for name in names if name.startswith("hai.")]
        todo.append(module.rpartition(".")[0])
    assert {"hai.trained", "hai.checkpoint.format", "hai.config.load"} <= seen

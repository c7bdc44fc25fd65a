"""Imports point one way: a package imports only those before it in this order. docs/architecture.md draws the same line."""

import ast
from pathlib import Path

import distilrec

ROOT = Path(distilrec.__file__).parent
ORDER = (
    "errors", "columns", "progress", "files", "panels", "secrets", "settings", "config", "config_file", "data", "students", "teachers",
    "knowledge", "losses", "methods", "training", "evaluation", "export", "serving", "pipeline", "compare", "cli", "__main__",
)  # fmt: skip


def package_of(path: Path) -> str:
    """Return the part of distilrec that a file belongs to: `data` for data/split.py, `config` for config.py."""
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[int, str]]:
    """Return (line, part of distilrec) of every import, also those inside functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "distilrec" else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("distilrec.")]
    return found


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def test_every_part_has_a_place_in_the_order() -> None:
    assert {package_of(path) for path in sources()} <= set(ORDER)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sources():
        own = package_of(path)
        for line, other in imported(path):
            if other in ORDER and other != own and ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{path.relative_to(ROOT)}, line {line}: {own} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line() -> None:
    importers = {package_of(path) for path in sources() if any(other == "cli" for _, other in imported(path))}
    assert importers <= {"cli", "__main__"}


def test_losses_know_no_models() -> None:
    used = {other for path in (ROOT / "losses").glob("*.py") for _, other in imported(path)}
    assert used <= {"errors", "columns", "config", "data", "losses"}  # settings and batches, which hold tensors


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import distilrec.cli.main\nfrom distilrec import __version__, config\n"
        "def f():\n    from distilrec.data.split import Split\nimport os\n"
    )
    assert imported(file) == [(1, "cli"), (2, "__version__"), (2, "config"), (4, "data")]

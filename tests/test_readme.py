"""What README and docs say is what results/ and the command line hold."""

import re
from pathlib import Path

import pytest
import typer

import tables
from distilrec.cli.main import app

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_those_of_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.filled(text, tables.tables()) == text, "run python benchmarks/tables.py"
    for name, content in re.findall(r"<!-- ([\w -]+) -->\n(.*?)\n<!-- /", text, flags=re.S):
        assert content.startswith("|") != (content == tables.NOTHING_YET), name


def test_many_pages_hold_tables() -> None:
    assert len(tables.PAGES) > 25
    assert {"README.md", "docs/training.md", "docs/annotate.md", "docs/methods/dllm2rec.md"} <= set(tables.PAGES)


def test_a_page_is_filled() -> None:
    page = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two x -->\n<!-- /two x -->\n"
    filled = tables.filled(page, {"one": "| 1 |"})
    assert filled == "a\n<!-- one -->\n| 1 |\n<!-- /one -->\nb\n<!-- two x -->\nNot measured yet.\n<!-- /two x -->\n"
    assert tables.filled(filled, {"one": "| 1 |"}) == filled


def test_every_verb_of_the_readme_exists_and_the_other_way_round() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if "distilrec fetch" in part)
    named = set(re.findall(r"\b(fetch|prepare|train|teach|select|annotate|distil|evaluate|run|tune|compare)\b", block))
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_published_file_has_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in sorted((ROOT / "results").glob("*.json")):
        assert re.search(rf"^results-{path.stem}:", makefile, flags=re.M), path.name
        assert f"`{path.name}`" in (ROOT / "results" / "README.md").read_text(encoding="utf-8"), path.name


def test_the_first_commands_are_targets_of_the_makefile() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first = re.findall(r"^make (\w+)", text, flags=re.M)
    assert first[:2] == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in first)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_entry_has_its_page() -> None:
    from distilrec.methods import METHODS
    from distilrec.students import STUDENTS
    from distilrec.teachers import TEACHERS

    for kind, registry in (("methods", METHODS), ("students", STUDENTS), ("teachers", TEACHERS)):
        for name in registry:
            assert (ROOT / "docs" / kind / f"{name}.md").exists(), name

"""The words around the code are true: command lines parse, paths exist, examples run, lists agree with the code.

Shell blocks (```sh) of README and docs are read line by line; ``epbench plan`` is run for real.
"""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

from epbench import errors
from epbench.cli import app
from epbench.runner.launch import EXIT_CELLS, EXIT_INTERRUPTED
from epbench.scenario import load_scenario, preset_scenario

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?:epbench|tests|docs|scenarios)/[\w./-]*")
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


class Snippet(NamedTuple):
    """A piece of a document. ``str()`` names a test case."""

    doc: Path
    text: str

    def __str__(self) -> str:
        return f"{self.doc.name}: {self.text.splitlines()[0][:60]}"


def prose(doc: Path) -> str:
    """A document without its blocks of code."""
    return _BLOCK.sub("", doc.read_text(encoding="utf-8"))


def blocks(language: str) -> Iterator[Snippet]:
    for doc in DOCS:
        for found in _BLOCK.finditer(doc.read_text(encoding="utf-8")):
            if found[1] == language:
                yield Snippet(doc, found[2])


def command_lines() -> Iterator[Snippet]:
    """Every command of every shell block, comments and variables in front removed."""
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for words in commands(shlex.split(line, comments=True)):
                while words and _ASSIGNMENT.fullmatch(words[0]):
                    words.pop(0)
                if words:
                    yield Snippet(block.doc, shlex.join(words[: words.index(">")] if ">" in words else words))


def commands(words: list[str]) -> Iterator[list[str]]:
    """The words of each command of a line."""
    for is_end, found in groupby(words, key=lambda word: word in ("&&", "||", "|", ";")):
        if not is_end:
            yield list(found)


def inline(start: str) -> Iterator[Snippet]:
    """Inline code whose first word is ``start``."""
    for doc in DOCS:
        yield from (Snippet(doc, it[1]) for it in _INLINE.finditer(prose(doc)) if it[1].split()[0] == start)


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, of a group the one in it, and the arguments that are left."""
    command, *rest = words
    found = COMMANDS[command]
    while rest and rest[0] in getattr(found, "commands", {}):
        found, rest = found.commands[rest[0]], rest[1:]
    return found, rest


def cases(snippets: Iterator[Snippet], *first: str) -> list[Any]:
    wanted = [it for it in dict.fromkeys(snippets) if tuple(it.text.split()[: len(first)]) == first]
    assert wanted, f"no document shows {' '.join(first)}"
    return [pytest.param(it, id=str(it)) for it in wanted]


@pytest.mark.parametrize("line", cases(command_lines(), "epbench"))
def test_epbench_line_of_a_shell_block_parses(line: Snippet) -> None:
    command, arguments = resolved(shlex.split(line.text)[1:])
    command.make_context(command.name, arguments)  # raises on a wrong option, value or missing argument


@pytest.mark.parametrize("mention", cases(inline("epbench"), "epbench"))
def test_epbench_command_in_a_sentence_exists(mention: Snippet) -> None:
    words = mention.text.split()[1:]
    if words == ["--help"]:
        return
    command, _ = resolved(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", cases(command_lines(), "epbench", "plan"))
def test_plan_line_runs(line: Snippet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(line.text)[1:])
    assert result.exit_code == 0, result.output


def test_make_targets_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [*command_lines(), *inline("make")]
    targets = {line.text.split()[-1] for line in lines if line.text.split()[0] == "make"}
    assert {"quick", "test", "lint"} <= targets
    assert targets <= rules


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_and_paths_exist(doc: Path) -> None:
    links = {target for target in _LINK.findall(prose(doc)) if "://" not in target}
    missing = [target for target in links if not (doc.parent / target.partition("#")[0]).exists()]
    words = {word for it in _INLINE.finditer(prose(doc)) for word in it[1].split()}
    missing += [word for word in words if _PATH.fullmatch(word) and not (ROOT / word).exists()]
    modules = {word for word in words if re.fullmatch(r"epbench(\.[a-z_]\w*)+", word)}
    missing += [word for word in modules - {"epbench.load", "epbench.stacks"} if find_spec(word) is None]
    assert not missing


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_into_a_page_meet_a_heading(doc: Path) -> None:
    for target in _LINK.findall(prose(doc)):
        path, _, anchor = target.partition("#")
        if anchor and "://" not in target:
            page = doc.parent / path if path else doc
            headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("block", cases(blocks("python")))
def test_python_block_is_python(block: Snippet) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", [it for it in cases(blocks("toml")) if "schema" in it.values[0].text])
def test_scenario_in_a_document_is_planned(block: Snippet, tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(block.text, encoding="utf-8")
    assert load_scenario(path).cells


# ---- lists that must agree with the code ----


def table(doc: str, heading: str) -> list[list[str]]:
    """Rows of the table whose header starts with ``heading``."""
    lines = (ROOT / "docs" / doc).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_layers_are_those_of_import_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    held = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = next(block.text for block in blocks("text") if block.doc.name == "architecture.md")
    assert [re.split(r"\s{2,}", line)[0] for line in drawn.splitlines()] == held


def test_counts_of_legal_layouts() -> None:
    header = "ranks | qwen3-30b-a3b | qwen3-235b-a22b | qwen3-coder-480b-a35b"
    rows = table("layouts.md", header)
    assert len(rows) >= 4
    for world_size, *counts in rows:
        presets = header.split(" | ")[1:]
        found = [len(preset_scenario(preset, world_size=int(world_size)).cells) for preset in presets]
        assert found == [int(count) for count in counts]


def test_exit_codes() -> None:
    documented = {int(row[0]) for row in table("nightly.md", "code | meaning")}
    kinds = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    raised = {kind.exit_code for kind in kinds if issubclass(kind, errors.EpbenchError)}
    assert documented == {0, 1, EXIT_CELLS, EXIT_INTERRUPTED} | raised

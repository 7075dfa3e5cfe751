"""The docs are true: lengths, links, commands, snippets, tours, and what is made from the code."""

import ast
import dataclasses
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from raylab.cli.experiment import read_experiment
from raylab.experiment.ladder_file import read_ladder
from raylab.storage.tables import LedgerRow, QueryValue, Result

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
HISTORY = ROOT / "docs" / "log.md"  # its commands are those of its days
MOST_README_LINES = 150
OWN_OPTIONS = ("experiments/tune.py", "experiments/pretrain_ladder.py")  # not those of raylab run

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()
COMMANDS = dict(HOOKS.command_tree())


def blocks(text, language=None):
    """The fenced blocks of a page, of one language or of all."""
    pattern = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [body for name, body in pattern.findall(text) if language in (None, name)]


# --------------------------------------------------------------------------------- the pages


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


@by_page
def test_links_point_at_what_is_there(page):
    links = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text())
    targets = [link.partition("#")[0] for link in links]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing


@by_page
def test_nothing_points_out_of_the_repository(page):
    links = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text())
    places = [(page.parent / link.partition("#")[0]).resolve() for link in links]
    assert not [str(place) for place in places if not place.is_relative_to(ROOT)]


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts}
    assert listed == there


# ------------------------------------------------------------------------------ the commands


def commands_of(page):
    """Every `raylab ...` and `python experiments/...` of a page, as words."""
    text = page.read_text()
    lines = [line for block in blocks(text) for line in block.splitlines()]
    lines += re.findall(
        r"`((?:raylab|python experiments/)[^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S)
    )
    found = []
    for line in lines:
        if not re.search(r"(^|[\s=])(raylab|python experiments/\w+\.py)(\s|$)", line):
            continue
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        for start, word in enumerate(words):
            is_file = word.startswith("experiments/") and words[start - 1] == "python"
            if is_file or (word == "raylab" and start == 0):
                found.append(["run", *words[start:]] if is_file else words[1:])
                break
    return found


def parse(words):
    """Parse as typer would; raises what it would tell a user. A command's bare name only names it."""
    if words in ([], ["--help"], ["data"]):
        return
    if words[:1] == ["run"] and set(words[1:2]) & set(OWN_OPTIONS):
        with mock.patch("sys.argv", words[1:]):
            options = runpy.run_path(str(ROOT / words[1]))["options"]
            if len(words) > 2:  # else it is only named
                options()
        return
    depth = 2 if words[0] == "data" else 1
    path = tuple(words[:depth])
    assert path in COMMANDS, f"there is no command raylab {' '.join(path)}"
    if len(words) > depth:
        COMMANDS[path].make_context(" ".join(path), list(words[depth:]))


@by_page
def test_commands_parse(page):
    if page == HISTORY:
        pytest.skip("a log tells of commands as they were")
    for words in commands_of(page):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"raylab {shlex.join(words)}: {type(error).__name__}: {error}")


def test_commands_are_found():
    assert sum(len(commands_of(page)) for page in PAGES if page != HISTORY) > 40


@pytest.mark.parametrize(
    "words",
    [
        "walk",
        "data walk",
        "run --walk",
        "search CHECKPOINT",
        "data mine --depth 3",
        "fit --draws x",
    ],
)
def test_commands_that_cannot_be_are_refused(words):
    with pytest.raises(Exception, match=r"no command|No such option|Missing|valid integer"):
        parse(words.split())


def test_experiments_that_are_named_are_there():
    names = set(re.findall(r"experiments/\w+\.py", "".join(page.read_text() for page in PAGES)))
    assert names
    assert not [name for name in names if not (ROOT / name).is_file()]


# ------------------------------------------------------------------------------- the snippets


@by_page
def test_what_snippets_import_is_there(page):
    """Snippets are Python, and what they import of raylab can be imported."""
    for block in blocks(page.read_text(), "python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "raylab":
                exec(ast.unparse(node), {})  # raises where a name is not there


def test_an_experiment_with_a_head_of_its_own_is_read(tmp_path, monkeypatch):
    """The two files that docs/own-models-and-heads.md shows."""
    shown = blocks((ROOT / "docs" / "own-models-and-heads.md").read_text(), "python")
    (head,) = [block for block in shown if "def pool" in block]
    (experiment,) = [block for block in shown if "import LAST" in block]
    (tmp_path / "last_token.py").write_text(head)
    (tmp_path / "experiment.py").write_text(experiment)
    monkeypatch.syspath_prepend(tmp_path)
    grid, _ = read_experiment(tmp_path / "experiment.py")
    names = [cell.name for cell in grid.cells()]
    assert names == ["dense-pico-1x96-cl", "dense-last-pico-1x96-cl"]
    sys.modules.pop("last_token", None)


def test_variants_that_are_shown_make_cells():
    shown = blocks((ROOT / "docs" / "own-models-and-heads.md").read_text(), "python")
    (block,) = [block for block in shown if "Variant(" in block]
    names: dict = {}
    exec(block, names)
    cells = {cell.name: cell.fine_tuning.learning_rate for cell in names["GRID"].cells()}
    assert cells["dense-pico-1x96-cl-slow"] == 2e-4 < cells["dense-pico-1x96-cl"]


def test_the_ladder_file_that_is_shown_is_read(tmp_path):
    (block,) = blocks((ROOT / "docs" / "own-models-and-heads.md").read_text(), "toml")
    path = tmp_path / "mine.toml"
    path.write_text(block)
    (tmp_path / "models" / "Llama-3.2-1B").mkdir(parents=True)
    ladder = read_ladder(path)
    assert ladder.recipe.adaptation.steps == 100
    assert {one.batch_queries for one in ladder.recipe.fine_tuning.values()} == {32}
    assert ladder.backbones[0].compute_dtype == "bfloat16"
    assert ladder.backbones[0].tokenization.query_prompt == "query:\n"


# ---------------------------------------------------------------------------------- the tours


def tours():
    """(heading, [(file, name) of each hop]) of docs/concepts.md."""
    text = (ROOT / "docs" / "concepts.md").read_text().partition("## A stranger's tour")[2]
    parts = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    hop = re.compile(r"^\| \d \| `([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
    return [(part.splitlines()[0], hop.findall(part)) for part in parts]


def defined(tree, name):
    """Whether a module defines a name, dotted for a member of a class."""
    first, _, rest = name.partition(".")
    for node in tree.body:
        names = {getattr(node, "name", None)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if first in names:
            return not rest or (isinstance(node, ast.ClassDef) and defined(node, rest))
    return False


def test_tours_take_three_hops_to_what_is_there():
    found = tours()
    assert len(found) == 3
    for heading, hops in found:
        assert len(hops) == 3, heading
        for file, name in hops:
            assert defined(ast.parse((ROOT / file).read_text()), name), f"{file} has no {name}"


def test_rooms_are_those_of_the_package():
    text = (
        (ROOT / "docs" / "concepts.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    )
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "raylab").glob("*/__init__.py")}
    assert set(rooms) == folders


# ------------------------------------------------------------------- what is made from the code


@by_page
def test_what_a_page_asks_for_can_be_made(page):
    made = HOOKS.filled(page.read_text())
    assert not re.search(r"<!-- (generated|included):", made)


def test_tables_have_every_column():
    made = HOOKS.filled((ROOT / "docs" / "tables.md").read_text())
    for row in (Result, QueryValue, LedgerRow):
        for field in dataclasses.fields(row):
            assert f"| `{field.name}` |" in made
            assert field.metadata["doc"] in made


def test_the_reference_has_every_command_and_option():
    made = HOOKS.filled((ROOT / "docs" / "cli.md").read_text())
    sections = {part.splitlines()[0]: part for part in made.split("## raylab ")[1:]}
    assert set(sections) == {" ".join(path) for path in COMMANDS}
    for path, command in COMMANDS.items():
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("-"):
                    assert f"`{flag}`" in sections[" ".join(path)]
    assert "| `--storage` | text | `lab` |" in sections["status"]


@pytest.mark.long
def test_the_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("material", reason="the site needs the extra 'docs'")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra 'docs'")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    page = (tmp_path / "site" / "index.html").read_text()
    fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page)
    assert not fetched
    assert "contrastive_and_distillation" in (tmp_path / "site" / "concepts.html").read_text()


def test_the_site_fetches_no_font():
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False

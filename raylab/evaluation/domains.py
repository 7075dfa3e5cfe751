"""In domain or out of it: whether a system is measured on the collection whose queries trained it."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from raylab.data.registry import find_benchmark

Domain = Literal["in domain", "out of domain"]
IN_DOMAIN: Domain = "in domain"
OUT_OF_DOMAIN: Domain = "out of domain"


def domain(collection: str, trained_on: str | None) -> Domain:
    """Where a system stands that was trained on one collection and is measured on another or the same.

    MS MARCO and slices of it are one. Where nothing says what a system was trained on, as in tables of
    before there were further collections, it was the collection measured.
    """
    if not trained_on or pd.isna(trained_on) or _family(collection) == _family(trained_on):
        return IN_DOMAIN
    return OUT_OF_DOMAIN


def _family(collection: str) -> str:
    benchmark = find_benchmark(collection)
    return collection if benchmark is None else benchmark.name

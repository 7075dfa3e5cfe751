"""The results table as series of runs: what a law is fitted to.

A series is one (head, objective, collection, split, measure) of runs trained on one collection. Its targets
are losses: contrastive entropy (`CE@256`, nats) as it is, and of any other measure, such as nDCG@10, what
lacks to 1.

Legend: R runs, Q queries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from raylab.evaluation.domains import IN_DOMAIN, Domain, domain
from raylab.experiment.config import ConfigError
from raylab.scaling.clusters import RUNS, SIZES
from raylab.scaling.laws import Law, find_law

MEASURES = ("CE@256", "nDCG@10")
N_CHOICES = ("parameters", "with_head")
D_CHOICES = ("tokens", "examples")
_RUN = ["system", "seed", "collection", "split", "measure"]
_COVARIATES = (
    "tokens", "examples", "spent_flops", "budget_flops", "retrieval_flops", "index_bytes",
)  # fmt: skip
_NUMBERS = ("parameters", "with_head", *_COVARIATES)
_COLUMNS = (
    "kind", "size", "head", "objective", "parameters", "head_parameters", "fingerprint", "variant",
    "varied", *_RUN, *_COVARIATES,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What every figure states: which results it is of, and how many.

    `domain`: whether the runs were trained on the collection. `where`: the part of a series, such as
    `budget 1e+12`, or nothing. `points`: distinct designs
    (size and budget). `window`: lowest and highest N (parameters), D (of the fit's choice) and C (FLOPs)
    of the runs, nan where unknown. `excluded`: runs left out, each with the reason.
    """

    head: str
    objective: str
    collection: str
    split: str
    measure: str
    domain: Domain
    where: str
    n_runs: int
    points: int
    n_queries: int
    seeds: tuple[int, ...]
    window: dict[str, tuple[float, float]]
    excluded: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """Runs of one (head, objective, collection, split, measure), ordered by size and budget.

    `numbers`: float64 [R] of each run by name, nan where unknown: `parameters` (non-embedding N), `with_head`
    (and the vocabulary head), `tokens`, `examples` (D), `spent_flops` (C), `budget_flops`,
    `retrieval_flops`, `index_bytes`. `losses_RQ`: float64, of each query. `strata`: how many consecutive
    queries are of each collection, where there are several (`raylab.scaling.macro`).
    """

    head: str
    objective: str
    collection: str
    split: str
    measure: str
    systems: tuple[str, ...]
    sizes: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    numbers: dict[str, np.ndarray]
    query_ids: tuple[str, ...]
    losses_RQ: np.ndarray
    where: str = ""
    excluded: tuple[str, ...] = ()
    domain: Domain = IN_DOMAIN
    strata: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        parts = (self.head, self.objective, self.collection, self.split, self.measure, self.where)
        return " ".join(part for part in parts if part)

    @property
    def losses_R(self) -> np.ndarray:
        return self.losses_RQ.mean(1)

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budget of each run in FLOPs; 0 where it is in epochs, which the variant then names."""
        return tuple(np.nan_to_num(self.numbers["budget_flops"]).tolist())

    @property
    def designs(self) -> tuple[tuple[str, str, float], ...]:
        """(size, variant, budget) of each run: runs of one design differ by their seed alone."""
        return tuple(zip(self.sizes, self.variants, self.budgets, strict=True))

    @property
    def clusters(self) -> tuple[tuple[str, tuple[Hashable, ...]], ...]:
        """What runs share, coarsest first: their size (one backbone), then their seed at it.

        The budgets of a size and a seed are branches of one training run, or at least start from one
        model and see the same batches in the same order.
        """
        return (SIZES, self.sizes), (RUNS, tuple(zip(self.sizes, self.seeds, strict=True)))

    def covariate(self, name: str, n: str = "parameters", d: str = "tokens") -> np.ndarray:
        """N, D or another number of the runs, float64 [R].

        Raises:
            ConfigError: an `n` or `d` that is none, or a covariate that no run has.
        """
        if n not in N_CHOICES or d not in D_CHOICES:
            raise ConfigError(
                f"n = {n!r}, d = {d!r}: they must be one of {N_CHOICES} and of {D_CHOICES}"
            )
        number = {"N": n, "D": d, "C": "spent_flops"}.get(name, name)
        if number not in self.numbers:
            raise ConfigError(
                f"covariate {name!r}: it must be N, D, C or one of {', '.join(self.numbers)}"
            )
        return self.numbers[number]

    def keep(self, mask_R: np.ndarray, reason: str = "", where: str = "") -> Series:
        """The runs of the mask; with a reason, the others are added to the excluded."""
        kept = np.flatnonzero(mask_R)
        left_out = () if not reason else tuple(
            f"{self.systems[r]}-seed{self.seeds[r]}: {reason}" for r in np.flatnonzero(~mask_R)
        )  # fmt: skip
        lists = {
            name: tuple(getattr(self, name)[r] for r in kept)
            for name in ("systems", "sizes", "variants", "seeds")
        }
        return dataclasses.replace(
            self,
            **lists,
            numbers={name: values[kept] for name, values in self.numbers.items()},
            losses_RQ=self.losses_RQ[kept],
            where=where or self.where,
            excluded=self.excluded + left_out,
        )

    def facts(self, n: str = "parameters", d: str = "tokens") -> dict[str, Any]:
        """The fields of `Facts`."""
        names = (
            "head", "objective", "collection", "split", "measure", "domain", "where", "excluded",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {
            "n_runs": len(self.systems),
            "points": len(set(self.designs)),
            "n_queries": len(self.query_ids),
            "seeds": tuple(sorted(set(self.seeds))),
            "window": {name: _range(self.covariate(name, n, d)) for name in "NDC"},
        }


def _range(values_R: np.ndarray) -> tuple[float, float]:
    known = values_R[np.isfinite(values_R)]
    return (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)


def series(
    results: pd.DataFrame,
    per_query: pd.DataFrame,
    measures: Sequence[str] = MEASURES,
    *,
    head: str | None = None,
    objective: str | None = None,
    collection: str | None = None,
    split: str | None = None,
    variant: str | None = None,
) -> list[Series]:
    """The series of trained runs, in a fixed order, whatever the order of the rows.

    Args:
        variant: a glob that variants' names must match; None keeps the plain recipe and budgets.

    Raises:
        ConfigError: a missing column, two rows for the same run, or runs of a series that were measured
            on different queries.
    """
    rows = trained_rows(results, variant)
    rows = rows_with(rows, head=head, objective=objective, collection=collection, split=split)
    rows = rows.loc[rows["measure"].isin(list(measures))]
    values = _values(per_query, set(rows["system"]), set(rows["measure"]))
    keys = ["head", "objective", "collection", "split", "measure"]
    every = [
        _series(dict(zip(keys, key, strict=False)), key[-1], group, values)
        for key, group in rows.groupby([*keys, "trained_on"], sort=True)
    ]
    order = {measure: place for place, measure in enumerate(measures)}
    return sorted(
        (one for one in every if one is not None),
        key=lambda one: (one.collection, one.split, order[one.measure], one.head, one.objective),
    )


def trained_rows(results: pd.DataFrame, variant: str | None = None) -> pd.DataFrame:
    """The rows of trained runs of the variants wanted.

    Raises:
        ConfigError: a missing column, or two rows for the same run.
    """
    missing = [name for name in _COLUMNS if name not in results.columns]
    if missing:
        raise ConfigError(f"the results table lacks the column(s) {', '.join(missing)}")
    rows = results.loc[results["kind"] == "trained"].copy()
    rows["seed"] = rows["seed"].fillna(0).astype(int)
    rows = of_variants(rows, variant)
    twice = rows.loc[rows.duplicated(_RUN)]
    if len(twice):
        raise ConfigError(f"two rows of the results table are about {tuple(twice.iloc[0][_RUN])}")
    rows["trained_on"] = rows["trained_on"].fillna("") if "trained_on" in rows.columns else ""
    rows["with_head"] = rows["parameters"].astype(float) + rows["head_parameters"].astype(float)
    return rows.sort_values(["parameters", "budget_flops", "system", "seed"], kind="stable")


def rows_with(rows: pd.DataFrame, **wanted: str | None) -> pd.DataFrame:
    """Rows with these values in columns of their names; None: any."""
    for name, value in wanted.items():
        rows = rows if value is None else rows.loc[rows[name] == value]
    return rows


def of_variants(rows: pd.DataFrame, variant: str | None) -> pd.DataFrame:
    """Rows of the variants that a glob names; None: of the plain recipe and of budgets."""
    if variant is None:
        return rows.loc[rows["varied"] != "recipe"]
    return rows.loc[[fnmatchcase(name, variant) for name in rows["variant"]]]


def _values(
    per_query: pd.DataFrame, systems: set[str], measures: set[str]
) -> dict[tuple, pd.Series]:
    """Values by query id of each run."""
    missing = [name for name in (*_RUN, "query_id", "value") if name not in per_query.columns]
    if missing:
        raise ConfigError(f"the per-query table lacks the column(s) {', '.join(missing)}")
    chosen = per_query.loc[
        per_query["system"].isin(sorted(systems)) & per_query["measure"].isin(sorted(measures))
    ]
    chosen = chosen.assign(seed=chosen["seed"].fillna(0).astype(int))
    return {
        key: rows.set_index("query_id")["value"].sort_index()
        for key, rows in chosen.groupby(_RUN, sort=False)
    }


def _series(
    key: dict[str, Any], trained_on: str, rows: pd.DataFrame, values: dict[tuple, pd.Series]
) -> Series | None:
    runs = [tuple(run) for run in rows[_RUN].itertuples(index=False, name=None)]
    have = np.array([run in values for run in runs])
    excluded = [f"{run[0]}-seed{run[1]}: no values per query" for run in runs if run not in values]
    if not have.any():
        return None
    columns = [values[run] for run in runs if run in values]
    queries = columns[0].index
    for run, column in zip(np.array(runs, dtype=object)[have], columns, strict=True):
        where = f"{key['collection']} {key['split']} {key['measure']}, {run[0]}-seed{run[1]}"
        if not column.index.is_unique:
            raise ConfigError(f"{where}: a query has two values")
        if not column.index.equals(queries):
            raise ConfigError(f"{where}: other queries than {runs[0][0]}-seed{runs[0][1]} has")
    losses_RQ = as_loss(key["measure"], np.stack([c.to_numpy(np.float64) for c in columns]))
    rows = rows.loc[have]
    whole = Series(
        **key,
        systems=tuple(rows["system"]),
        sizes=tuple(rows["size"]),
        variants=tuple(rows["variant"]),
        seeds=tuple(map(int, rows["seed"])),
        numbers={n: rows[n].to_numpy(np.float64, na_value=np.nan) for n in _NUMBERS},
        query_ids=tuple(queries),
        losses_RQ=losses_RQ,
        excluded=tuple(excluded),
        domain=domain(key["collection"], trained_on),
    )
    whole = whole.keep(np.isfinite(losses_RQ.sum(1)), "a value is not finite")
    return whole.keep(np.greater(whole.losses_R, 0), "its loss is not positive")


def as_loss(measure: str, values: np.ndarray) -> np.ndarray:
    """Contrastive entropy is a loss; of other measures, which end at 1, it is what lacks to 1."""
    return values if is_entropy(measure) else 1.0 - values


def is_entropy(measure: str) -> bool:
    return measure.startswith("CE@")


def slices(whole: Series, law: str | Law) -> list[Series]:
    """The parts of a series whose runs lie on one curve of a law: those of a budget, of a size, or all.

    Along a budget D falls as N rises, and at a size N is fixed: runs of several budgets do not lie on one
    L(N), nor those of several sizes on one L(D).
    """
    within = find_law(law).within
    if within == "budget":
        labels = [f"budget {b:.6g}" if b else f"epochs {v}".strip() for _, v, b in whole.designs]
    elif within == "size":
        labels = [f"size {size}" for size in whole.sizes]
    else:
        return [whole]
    return [
        whole.keep(np.array([run_label == label for run_label in labels]), where=label)
        for label in dict.fromkeys(labels)
    ]

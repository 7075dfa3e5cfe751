"""What the tables of docs/results say, in the words of its page: `tests/docs/test_results.py` compares.

python -m tests.docs.results_figures      prints every phrase with the figures of today's tables
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parents[2] / "docs" / "results"


def phrases() -> dict[str, list[str]]:
    """Phrases by the name of their folder."""
    return {
        "equal-data": equal_data(),
        "isoflop": isoflop(),
        "seeds": seeds(),
        "robustness": robustness(),
    }


def _tables(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    results = pd.read_parquet(FOLDER / name / "results.parquet")
    laws = pd.read_csv(FOLDER / name / "report" / "laws.csv", keep_default_na=False, na_values=[""])
    return results[results["split"] == "test"], laws


def _trained(results: pd.DataFrame, measure: str = "nDCG@10") -> pd.DataFrame:
    return results[(results["kind"] == "trained") & (results["measure"] == measure)]


def _contract(cells: pd.DataFrame) -> tuple[str, str]:
    """The largest deviation from a plan, and the largest spread of a budget, in percent."""
    deviation = (cells["spent_flops"] / cells["budget_flops"] - 1).abs().max()
    spent = cells.groupby("budget_flops")["spent_flops"]
    spread = (spent.max() / spent.min() - 1).max()
    return f"{100 * deviation:.2f} %", f"{100 * spread:.2f} %"


def _slope(laws: pd.DataFrame, head: str, objective: str, measure: str = "nDCG@10") -> str:
    (row,) = laws[
        (laws["row"] == "claim") & (laws["quantity"] == "slope per decade") & (laws["head"] == head)
        & (laws["objective"] == objective) & (laws["measure"] == measure)
    ].to_dict("records")  # fmt: skip
    return f"{row['verdict']}, {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _freedom(laws: pd.DataFrame) -> str:
    slopes = laws[(laws["row"] == "claim") & (laws["quantity"] == "slope per decade")]
    ((freedom, clusters),) = set(
        zip(slopes["degrees_of_freedom"].round(6), slopes["clusters"], strict=False)
    )
    return f"{freedom:g} of {clusters}"


def _pairs(laws: pd.DataFrame) -> tuple[int, int, int, int]:
    """Of the pairs by nDCG@10: all (which is their family), sparse better, dense better, undecided."""
    pairs = laws[(laws["row"] == "claim") & (laws["quantity"] == "difference")]
    assert set(pairs["family"]) == {len(pairs)}
    verdicts = pairs["verdict"]
    return len(pairs), *((verdicts == one).sum() for one in ("sparse", "dense", "undecided"))


def equal_data() -> list[str]:
    results, laws = _tables("equal-data")
    cells = _trained(results)
    means = cells.groupby("parameters")["value"].mean()
    untrained = results[(results["kind"] == "untrained") & (results["measure"] == "nDCG@10")]
    *smaller, largest = (f"{value:.3f}" for value in means)

    def forecast(measure: str) -> str:
        (row,) = laws[(laws["row"] == "forecast") & (laws["measure"] == measure)].to_dict("records")
        predicted = f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        return f"{predicted}, measured {row['measured']:.2f}"

    return [
        f"{len(means)} sizes x {cells['seed'].nunique()} seeds",
        f"{', '.join(smaller)} and {largest}",
        f"the best run {cells['value'].max():.3f}",
        f"from {untrained['value'].min():.2f} to {untrained['value'].max():.2f}",
        f"nDCG@10 {_slope(laws, 'dense', 'cl')}",
        f"contrastive entropy {_slope(laws, 'dense', 'cl', 'CE@256')}",
        f"(df {_freedom(laws)})",
        f"loss of nDCG@10 {forecast('nDCG@10')}",
        f"of contrastive entropy {forecast('CE@256')}",
    ]


def isoflop() -> list[str]:
    results, laws = _tables("isoflop")
    cells = _trained(results)
    deviation, spread = _contract(cells)
    sparse = cells[(cells["head"] == "sparse") & (cells["size"] == "pico-3x192")]["value"]
    start = results[
        (results["kind"] == "untrained") & (results["measure"] == "nDCG@10")
        & (results["head"] == "sparse") & (results["size"] == "pico-3x192")
    ]["value"].item()  # fmt: skip
    fits = laws[
        (laws["row"] == "fit") & (laws["law"] == "chinchilla") & (laws["measure"] == "CE@256")
        & (laws["n"] == "parameters")
    ].set_index(["head", "quantity"])  # fmt: skip

    def parameter(head: str, name: str) -> str:
        row = fits.loc[(head, name)]
        return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"

    optima = laws[
        (laws["row"] == "optimum") & (laws["measure"] == "CE@256") & (laws["law"] == "chinchilla")
        & laws["about"].str.startswith("surface") & (laws["quantity"] == "N")
        & (laws["n"] == "parameters")
    ]  # fmt: skip
    forecasts = laws[
        (laws["row"] == "forecast") & (laws["law"] == "chinchilla") & (laws["measure"] == "CE@256")
    ]
    held = (forecasts["verdict"] == "held").sum()
    budget = forecasts[forecasts["about"].str.contains("held out budget")]["relative_error"].abs()
    size = forecasts[forecasts["about"].str.contains("held out size")]["relative_error"].abs()
    every, better, worse, left = _pairs(laws)
    return [
        f"{len(cells)} runs",
        f"within {deviation}, cells of one budget within {spread} of each other",
        f"dense {_slope(laws, 'dense', 'cl')}",
        f"sparse {_slope(laws, 'sparse', 'cl')}",
        f"(df {_freedom(laws)})",
        f"sparse 3x192: {sparse.min():.2f} to {sparse.max():.2f}; untrained {start:.2f}",
        f"sparse better in {better} of {every} pairs, dense in {worse}, {left} undecided",
        f"dense b = {parameter('dense', 'b')}, sparse {parameter('sparse', 'b')}",
        f"{(optima['verdict'] == 'open').sum()} of {len(optima)} optima are open",
        f"{held} of {len(forecasts)} designs held out lie within",
        f"errors of up to {100 * budget.max():.0f} % without the largest budget and {100 * size.max():.0f} % "
        "without the largest size",
    ]


def seeds() -> list[str]:
    results, laws = _tables("seeds")
    cells = _trained(results)
    deviation, spread = _contract(cells)
    by_cell = cells.groupby("system")["value"]
    moved = by_cell.max() - by_cell.min()
    every, better, worse, left = _pairs(laws)
    return [
        f"{by_cell.ngroups} cells x {cells['seed'].nunique()} seeds",
        f"within {deviation}, all within {spread} of each other",
        f"by {moved.min():.3f} to {moved.max():.3f}",
        f"sparse better in {better} of {every} pairs, dense in {worse}, {left} undecided",
        f"CL, dense {_slope(laws, 'dense', 'cl')}",
        f"CL, sparse {_slope(laws, 'sparse', 'cl')}",
        f"KD, dense {_slope(laws, 'dense', 'kd')}",
        f"KD, sparse {_slope(laws, 'sparse', 'kd')}",
        f"(df {_freedom(laws)})",
    ]


def robustness() -> list[str]:
    results, _ = _tables("robustness")
    cells = _trained(results)
    means = cells.groupby(["objective", "head", "variant"])["value"].mean()
    told = []
    for share, variant in ((10, "wrong0.1"), (25, "wrong0.25"), (50, "wrong0.5")):
        for objective in ("CL", "KD"):
            if (objective, share) == ("KD", 50):
                values = (means[objective.lower(), head, variant] for head in ("sparse", "dense"))
                told.append(" and ".join(f"{value:.3f}" for value in values))
                continue
            sparse, dense = (_kept(objective, head, share / 100) for head in ("sparse", "dense"))
            told.append(f"| {objective} | {share} % | {sparse} | {dense} |")
    return told


def _kept(objective: str, head: str, share: float) -> str:
    """`94 % [90, 99] | 82 % [70, 95]`: of the value, of the gain over untrained."""
    spec = json.loads((FOLDER / "robustness" / "report" / "corruption.json").read_text())
    found = {}
    for panel in _panels(spec):
        title = json.dumps(panel)
        for kind, words in (("value", "share of nDCG@10 kept"), ("gain", "share of the gain over")):
            if words in title:
                for row in _rows(panel):
                    if row.get("series") == f"{head} {objective}" and row.get("x") == share:
                        found[kind] = row
    return " | ".join(
        f"{100 * row['y']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        for row in (found["value"], found["gain"])
    )


def _panels(spec: dict) -> list[dict]:
    for key in ("concat", "hconcat", "vconcat"):
        if key in spec:
            return [panel for part in spec[key] for panel in _panels(part)]
    return [spec]


def _rows(panel: object) -> list[dict]:
    """Every row of data within a panel."""
    if isinstance(panel, list):
        return [row for one in panel for row in _rows(one)]
    if not isinstance(panel, dict):
        return []
    own = [panel] if {"series", "x", "y"} <= panel.keys() else []
    return own + [row for one in panel.values() for row in _rows(one)]


if __name__ == "__main__":
    for name, told in phrases().items():
        print(name, *told, sep="\n  ")

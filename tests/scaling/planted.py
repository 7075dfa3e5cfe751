"""Synthetic studies whose law, run noise and query noise are known: as series and as tables."""

import itertools

import numpy as np
import pandas as pd

from raylab.scaling import Series

SIZES = np.geomspace(1e4, 1e7, 8)
BUDGETS = np.geomspace(1e11, 1e14, 5)
TRUTH = {
    "size": {"A": 3e4, "a": 0.53, "d": 0.04},
    "data": {"B": 3.5e3, "b": 1.05, "d": 0.04},
    "joint": {"A": 3e4, "a": 0.56, "B": 3e3, "b": 1.3, "d": 0.2},
    "chinchilla": {"E": 0.4, "A": 60.0, "a": 0.45, "B": 300.0, "b": 0.5},
    "retrieval_flops": {"A": 5.0, "a": 0.4, "d": 0.1},
    "index_bytes": {"A": 5e3, "a": 0.4, "d": 0.1},
}


UNKNOWN = ("tokens", "examples", "retrieval_flops", "index_bytes", "head_parameters")


def loss(law, n, d):
    """The planted loss, written out; retrieval FLOPS and index bytes follow from N (`planted`)."""
    t = TRUTH[law]
    if law == "chinchilla":
        return t["E"] + t["A"] / n ** t["a"] + t["B"] / d ** t["b"]
    if law == "joint":
        return ((t["A"] / n) ** (t["a"] / t["b"]) + t["B"] / d) ** t["b"] + t["d"]
    if law == "data":
        return (t["B"] / d) ** t["b"] + t["d"]
    x = {"size": n, "retrieval_flops": n**0.5 / 10, "index_bytes": n}[law]
    return (t["A"] / x) ** t["a"] + t["d"]


def planted(
    law, sizes=SIZES, budgets=BUDGETS, seeds=1, runs=0.0, queries=0.0, count=50, k=6.0, rng=0,
    branches=0.0, whole=0.0,
):  # fmt: skip
    """A series: `runs` is the log standard deviation of noise of each run alone, `branches` of what all
    budgets of a size and a seed share, `whole` of what all runs of a size share; `queries` that of how
    hard a query is for all of them, half of which it is to each run alone."""
    rng = np.random.default_rng(rng)
    cells = list(itertools.product(sizes, budgets, range(seeds)))
    n, c, seed = (np.array(column) for column in zip(*cells, strict=True))
    d = c / (k * n)
    noise = runs * rng.normal(size=len(n))
    of_size, of_run = rng.normal(size=len(sizes)), rng.normal(size=(len(sizes), seeds))
    at = np.searchsorted(np.sort(sizes), n)
    noise += whole * of_size[at] + branches * of_run[at, seed.astype(int)]
    of_runs = loss(law, n, d) * np.exp(noise)
    hard = np.exp(queries * rng.normal(size=count) - queries**2 / 2)
    own = queries / 2 * rng.normal(size=(len(n), count))
    numbers = {
        "parameters": n, "with_head": n + 5_000, "tokens": d, "examples": d / 50, "spent_flops": c,
        "budget_flops": c, "retrieval_flops": n**0.5 / 10, "index_bytes": n,
    }  # fmt: skip
    return Series(
        "sparse", "cl", "planted", "test", "CE@256",
        systems=tuple(f"sparse-{a:.4g}-cl-{b:.4g}" for a, b in zip(n, c, strict=True)),
        sizes=tuple(f"{a:.4g}" for a in n),
        variants=tuple(f"{b:.4g}" for b in c),
        seeds=tuple(map(int, seed)),
        numbers={name: np.asarray(own, float) for name, own in numbers.items()},
        query_ids=tuple(map(str, range(count))),
        losses_RQ=of_runs[:, None] * (hard + own),
    )  # fmt: skip


def tables(values, queries=40, noise=0.05, seed=0):
    """Results and per-query values of runs of the plain recipe.

    Args:
        values: (size, parameters, head, objective, measure) -> the mean of each seed.
    """
    rng = np.random.default_rng(seed)
    hard = noise * rng.normal(size=queries)
    results, per_query = [], []
    for (size, n, head, objective, measure), means in values.items():
        for run_seed, mean in enumerate(means):
            own = hard + noise / 2 * rng.normal(size=queries)
            own += mean - own.mean()
            key = {
                "system": f"{head}-{size}-{objective}", "seed": run_seed, "collection": "planted",
                "split": "test", "measure": measure,
            }  # fmt: skip
            results.append(
                {
                    **key, "kind": "trained", "size": size, "head": head, "objective": objective,
                    "value": own.mean(), "parameters": n, "budget_flops": 1e12,
                    "spent_flops": 1e12, "fingerprint": "0", "variant": "", "varied": "",
                    **dict.fromkeys(UNKNOWN, float("nan")),
                }
            )  # fmt: skip
            per_query += [
                {**key, "fingerprint": "1", "query_id": f"q{q}", "value": value}
                for q, value in enumerate(own)
            ]
    return pd.DataFrame(results), pd.DataFrame(per_query)


def study(law="chinchilla", head="sparse", objective="cl", **options):
    """A planted series as the tables of a storage: isoFLOP runs, whose variant is their budget."""
    one = planted(law, **options)
    numbers = one.numbers
    keys = [
        {
            "system": system.replace("sparse", head).replace("cl", objective), "seed": seed,
            "collection": one.collection, "split": one.split, "measure": one.measure,
        }
        for system, seed in zip(one.systems, one.seeds, strict=True)
    ]  # fmt: skip
    results = pd.DataFrame(keys).assign(
        kind="trained", size=one.sizes, head=head, objective=objective, value=one.losses_R,
        parameters=numbers["parameters"].round().astype(int), variant=one.variants,
        varied=["budget" if variant else "" for variant in one.variants],
        head_parameters=5_000 if head == "sparse" else 0, fingerprint="0",
        **{name: numbers[name] for name in (
            "tokens", "examples", "spent_flops", "budget_flops", "retrieval_flops")},
        index_bytes=numbers["index_bytes"].round().astype(int),
    )  # fmt: skip
    per_query = pd.DataFrame(
        [
            {**key, "fingerprint": "1", "query_id": query_id, "value": value}
            for key, values in zip(keys, one.losses_RQ, strict=True)
            for query_id, value in zip(one.query_ids, values, strict=True)
        ]
    )
    return results, per_query


def noisy(one, law):
    """The values of a planted series over the loss that was planted: noise alone, about 1."""
    return one.losses_RQ / loss(law, one.numbers["parameters"], one.numbers["tokens"])[:, None]

"""What the laws and tests come to: the paper's claims, negative results, and what was refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raylab.report.formats import NOTHING, objective_label
from raylab.report.page.blocks import Block, columns
from raylab.report.page.law_texts import (
    BOUND,
    N_LABELS,
    OF,
    freedom_text,
    held_out_text,
    interval_text,
    of_series,
)
from raylab.scaling import Claim, Law, Series, Study


def claims_block(tests: Sequence[Claim]) -> Block:
    """The slopes, a line each; sparse against dense, a line an objective: the tests are tabled elsewhere."""
    body = [
        (
            one.claim,
            *of_series(one),
            NOTHING if one.reason else interval_text(one.estimate),
            one.verdict,
            _reason(one),
            freedom_text(one),
            f"{one.n_runs} / {one.points} / {len(one.seeds)}",
        )
        for one in tests
        if not one.size
    ]
    pairs: dict[tuple, list[Claim]] = {}
    for one in tests:
        if one.size:
            pairs.setdefault((one.claim, *of_series(one)), []).append(one)
    for key, claims in pairs.items():
        claim, _, *where = key
        body.append(
            (
                claim,
                "both",
                *where,
                NOTHING,
                _majority(claims),
                f"{_counted(claims)} (Holm, family of {claims[0].family}: {claims[0].question})",
                NOTHING,
                f"{len(claims)} pairs",
            )
        )
    names = ("slope per decade of N", "verdict", "about", "df", "runs / designs / seeds")
    return Block(
        "The paper's three claims",
        columns(("claim", *OF, *names)),
        tuple(body),
        note="Improves with size: of CL, the 95 % interval of the slope excludes 0, in the direction that is "
        "better. Flat in size: of KD, its 90 % interval lies within the margin (equivalence). Both "
        "within budgets; df: of sizes, which are what a slope over sizes counts. Sparse beats dense: paired "
        "t-tests, Holm over the family named, as in the table of pairs; never of a mean over collections.",
    )


def _reason(one: Claim) -> str:
    if one.reason:
        return one.reason.rpartition("; ")[2]
    return f"margin {one.margin:g}" if one.margin == one.margin else ""


def _majority(pairs: Iterable[Claim]) -> str:
    verdicts = {one.verdict for one in pairs}
    if verdicts == {"sparse"}:
        return "sparse beats dense"
    if {"sparse", "dense"} <= verdicts:
        return "mixed"
    return "in part" if "sparse" in verdicts else "dense" if "dense" in verdicts else "undecided"


def _counted(pairs: Sequence[Claim]) -> str:
    """Which cells which head won, by budget where there are any."""
    parts = []
    for verdict, text in (("sparse", "sparse better"), ("dense", "dense better")):
        sizes: dict[str, list[str]] = {}
        for one in pairs:
            if one.verdict == verdict:
                sizes.setdefault(one.size, []).append(one.where)
        if sizes:
            named = ", ".join(
                size + (f" ({', '.join(at)})" if any(at) else "") for size, at in sizes.items()
            )
            parts.append(f"{text} in {sum(map(len, sizes.values()))}: {named}")
    open_ = sum(one.verdict not in ("sparse", "dense") for one in pairs)
    return "; ".join([*parts, *([f"undecided in {open_}"] if open_ else [])])


_AGAINST = {"worsens": "worsens with size", "not flat": "is not flat in size", "dense": "loses"}


def negative(study: Study) -> list[str]:
    """Claims that came out against the paper, forecasts that missed, and fits that the data do not hold."""
    lines = [
        f"{' '.join(of_series(one))}: {_AGAINST[one.verdict]}, {interval_text(one.estimate)} per decade of N"
        for one in study.claims
        if one.verdict in _AGAINST and not one.size
    ]
    losses = [one for one in study.claims if one.verdict == "dense"]
    for of in dict.fromkeys(of_series(one)[1:] for one in losses):
        pairs = [one for one in study.claims if one.size and of_series(one)[1:] == of]
        lost = sum(one.verdict == "dense" for one in pairs)
        lines.append(f"{' '.join(of)}: dense beats sparse in {lost} of {len(pairs)} pairs")
    for one in study.forecasts:
        missed = [f"{p.size} ({p.relative_error:+.0%})" for p in one.predictions if not p.held]
        if missed:
            of = f"{' '.join(of_series(one))}, {one.law} without the largest {one.hold_out}"
            lines.append(f"{of}: missed {', '.join(missed)} at {held_out_text(one)}")
    bound = [
        f"{' '.join(of_series(f))} {f.law} ({N_LABELS[f.n]}: {', '.join(f.at_bounds)})"
        for f in study.fits
        if f.at_bounds
    ]
    if bound:
        lines.append(
            f"{len(bound)} of {len(study.fits)} fits have a parameter {BOUND}: {'; '.join(bound)}"
        )
    surfaces = [one for one in study.optima if one.method == "surface"]
    for places, text in (
        (("below", "above"), "lie outside the sizes tried"),
        (("open",), "are open: their intervals reach beyond the sizes tried"),
    ):
        count = sum(one.place in places for one in surfaces)
        if count:
            lines.append(f"{count} of {len(surfaces)} isoFLOP optima of surfaces {text}")
    return lines


def refusals(study: Study) -> list[str]:
    """Reasons, each with the series that it is of: a line a reason."""
    by_reason: dict[tuple[str, str], list[Series]] = {}
    for one in study.refused:
        reason = _too_few(one.series, one.law) if one.what == "fit" and one.law else one.reason
        by_reason.setdefault((one.named, reason), []).append(one.series)
    return [f"{law}: {reason} ({_all(of)})." for (law, reason), of in by_reason.items()]


def _too_few(part: Series, law: Law) -> str:
    """Why a law cannot be fitted: `3 sizes, 3 parameters: no degree of freedom`."""
    sizes, budgets = len(set(part.sizes)), len({design[1:] for design in part.designs})
    levels = {
        "budget": _several(sizes, "size"),
        "size": _several(budgets, "budget"),
    }.get(law.within, f"{_several(sizes, 'size')} x {_several(budgets, 'budget')}")
    parameters, points = len(law.parameters), len(set(part.designs))
    left = points - parameters
    why = "no degree of freedom" if left < 1 else "fewer than 3 levels of N or D"
    return f"{levels}, {parameters} parameters: {why}"


def _several(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _all(of: Sequence[Series]) -> str:
    """`sparse CL, dense CL; scifact test; CE@256`."""
    parts = (
        [f"{one.head} {objective_label(one.objective)}" for one in of],
        [f"{one.collection} {one.split}" for one in of],
        [one.measure for one in of],
        [one.where for one in of if one.where],
    )
    return "; ".join(", ".join(dict.fromkeys(names)) for names in parts if names)

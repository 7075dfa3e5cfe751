"""The page's own charts: curves of runs, into which the page puts points as they come."""

from __future__ import annotations

from functools import cache
from typing import Any

DATA = "points"


@cache
def curve_charts() -> dict[str, dict[str, Any]]:
    """Charts of loss in Vega-Lite: by `steps`, and by `flops` on a logarithmic axis.

    Their rows are points as `/api/run/NAME` gives them, with the run's name beside.
    """
    return {"steps": _curve("step", "step", False), "flops": _curve("flops", "FLOPs spent", True)}


def _curve(field: str, title: str, log: bool) -> dict[str, Any]:
    import altair as alt

    scale = alt.Scale(type="log") if log else alt.Scale(nice=False)
    axis = alt.Axis(format="~e" if log else "~s", tickCount=5)
    chart = (
        alt.Chart(alt.NamedData(name=DATA), width="container", height=280)
        .properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .mark_line(point=True, clip=True)
        .encode(
            x=alt.X(f"{field}:Q", title=title, scale=scale, axis=axis),
            y=alt.Y("loss:Q", title="training loss", scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", legend=alt.Legend(orient="bottom", columns=1, labelLimit=300)),
            strokeDash=alt.StrokeDash("run:N"),
            order=alt.Order("n:Q"),
        )
        .properties(description=f"Training loss of the chosen runs against {title}")
    )
    return chart.to_dict()

"""The page's own charts: curves of runs and the timeline, into which the page puts rows as they come."""

from __future__ import annotations

from functools import cache
from typing import Any

DATA = "rows"
X_AXES = {"step": "step", "flops": "FLOPs spent", "tokens": "tokens", "seconds": "seconds of steps"}
Y_AXES = {
    "loss": "training loss",
    "held_out": "held-out contrastive entropy, nats",
    "gradient_norm": "gradient norm, before it is clipped",
    "learning_rate": "learning rate",
    "tokens_per_s": "tokens a second",
    "active_terms": "active terms a passage",
    "collapse": "mean cosine of two passages",
}
_HEIGHT = 280
_STATES = ("done", "running", "stopped", "failed", "planned")
_COLOURS = ("#0b3c5d", "#56aee0", "#e8952a", "#7a2e00", "#9a9a9a")


def _chart(height: int) -> Any:
    """A chart of the page's rows, as wide as its place."""
    import altair as alt  # 0.6 s: only who asks for a chart waits

    fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
    return alt.Chart(alt.NamedData(name=DATA), width="container", height=height, autosize=fitted)


@cache
def curve_chart(x: str, y: str, log_x: bool, log_y: bool) -> dict[str, Any]:
    """Points of runs in Vega-Lite: rows as `/api/run/NAME` gives them, with the run's name beside.

    Args:
        x: of `X_AXES`.
        y: of `Y_AXES`.
    """
    import altair as alt

    def scale(log: bool, nice: bool) -> Any:
        return alt.Scale(type="log", nice=nice) if log else alt.Scale(zero=False, nice=nice)

    axis_x = alt.Axis(format="~e" if x in ("flops", "tokens") else "~s", tickCount=5)
    chart = (
        _chart(_HEIGHT)
        .mark_line(point=True)
        .encode(
            x=alt.X(f"{x}:Q", title=X_AXES[x], scale=scale(log_x, nice=False), axis=axis_x),
            y=alt.Y(f"{y}:Q", title=Y_AXES[y], scale=scale(log_y, nice=True)),
            color=alt.Color("run:N", legend=alt.Legend(orient="bottom", columns=1, labelLimit=300)),
            strokeDash=alt.StrokeDash("run:N"),
            order=alt.Order("n:Q"),
            tooltip=["run:N", f"{x}:Q", f"{y}:Q"],
        )
        .properties(description=f"{Y_AXES[y]} of the chosen runs against {X_AXES[x]}")
    )
    return chart.to_dict()


@cache
def timeline_chart() -> dict[str, Any]:
    """Stages and runs over time, in Vega-Lite; planned ones are thin, below the real ones.

    Rows: `name`, `kind`, `what` (planned, real), `state`, `begin` and `end` in minutes.
    """
    import altair as alt

    base = alt.Chart().encode(
        x=alt.X("begin:Q", title="minutes", axis=alt.Axis(tickCount=6)),
        x2="end:Q",
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        color=alt.Color(
            "state:N",
            title=None,
            scale=alt.Scale(domain=list(_STATES), range=list(_COLOURS)),
            legend=alt.Legend(orient="bottom", columns=3),
        ),
        tooltip=["name:N", "what:N", "state:N", "begin:Q", "end:Q"],
    )
    real = base.transform_filter("datum.what == 'real'").mark_bar(height={"band": 0.55})
    planned = base.transform_filter("datum.what == 'planned'").mark_bar(
        height={"band": 0.22}, yOffset=6
    )
    chart = alt.layer(real, planned, data=alt.NamedData(name=DATA)).properties(
        width="container",
        height=alt.Step(18),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        description="Stages and runs over time, as planned and as they were",
    )
    return chart.to_dict()


@cache
def devices_chart() -> dict[str, Any]:
    """Devices that runs hold, planned and real, in Vega-Lite; rows: `what`, `at` in minutes, `devices`."""
    import altair as alt

    chart = (
        _chart(110)
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("at:Q", title="minutes", axis=alt.Axis(tickCount=6)),
            y=alt.Y("devices:Q", title="devices", axis=alt.Axis(tickMinStep=1)),
            color=alt.Color("what:N", title=None, scale=alt.Scale(range=["#9a9a9a", "#0b3c5d"])),
            strokeDash=alt.StrokeDash("what:N", scale=alt.Scale(range=[[4, 3], [1, 0]])),
        )
        .properties(description="Devices that runs hold over time, as planned and as it was")
    )
    return chart.to_dict()


@cache
def changes_chart() -> dict[str, Any]:
    """What every query gained or lost between two systems, in Vega-Lite; rows: `place` in order, `change`."""
    import altair as alt

    chart = (
        _chart(180)
        .mark_area(interpolate="step", line=True, opacity=0.4)
        .encode(
            x=alt.X("place:Q", title="queries, by what they gained", scale=alt.Scale(nice=False)),
            y=alt.Y("change:Q", title="system B less system A"),
            color=alt.value("#0b3c5d"),
        )
        .properties(description="What every query gained from system A to system B")
    )
    return chart.to_dict()

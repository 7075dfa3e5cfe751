"""Scaling laws of a results table: series, fits with intervals, forecasts, optima, claims.

runs = series(results, per_query)              # one a (head, objective, collection, split, measure)
fitted = fit(runs[0], "chinchilla")            # every parameter with its interval
fitted.predict(1e9, 1e10)                      # the loss there, with its interval
forecast(runs[0], "chinchilla", "size")        # without the largest size, which is then predicted
isoflop(runs[0], fitted); claims(results, per_query)
"""

from raylab.scaling.bootstrap import Interval
from raylab.scaling.claims import Claim, claims
from raylab.scaling.curves import Envelope, curve_series, envelope, envelopes
from raylab.scaling.domain_differences import (
    DomainDifference,
    exponent_differences,
    slope_difference,
)
from raylab.scaling.fit import Fit, fit
from raylab.scaling.forecast import Forecast, Predicted, forecast
from raylab.scaling.isoflop import Optimum, isoflop
from raylab.scaling.laws import LAWS, Law, find_law, laws_of
from raylab.scaling.macro import macro_means
from raylab.scaling.points import Facts, Series, series, slices
from raylab.scaling.rows import COLUMNS, rows
from raylab.scaling.study import Refusal, Study

__all__ = [
    "COLUMNS",
    "LAWS",
    "Claim",
    "DomainDifference",
    "Envelope",
    "Facts",
    "Fit",
    "Forecast",
    "Interval",
    "Law",
    "Optimum",
    "Predicted",
    "Refusal",
    "Series",
    "Study",
    "claims",
    "curve_series",
    "envelope",
    "envelopes",
    "exponent_differences",
    "find_law",
    "fit",
    "forecast",
    "isoflop",
    "laws_of",
    "macro_means",
    "rows",
    "series",
    "slices",
    "slope_difference",
]

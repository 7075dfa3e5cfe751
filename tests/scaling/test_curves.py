"""Laws from held-out curves: planted ones come back, and intervals know that points of a curve move together."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.experiment.config import ConfigError
from raylab.scaling import Study, curve_series, envelope, find_law
from raylab.storage.store import Store
from raylab.storage.tables import CURVES, CurvePoint, table_of, write_table

E, A, ALPHA, B, BETA = 0.4, 60.0, 0.45, 300.0, 0.5
STEPS, K = 1_000, 6.0


def loss(n, d):
    return E + A / n**ALPHA + B / d**BETA


def planted(sizes, seeds=2, budget=1e13, noise=0.0, points=12, rng=0) -> pd.DataFrame:
    """Curves of the planted law with noise of whole runs; the first points are of the warm-up."""
    random = np.random.default_rng(rng)
    rows = []
    for place, n in enumerate(sizes):
        for seed in range(seeds):
            factor = np.exp(noise * random.normal())
            for step in sorted({round(s) for s in np.geomspace(10, STEPS, points)}):
                flops = budget * step / STEPS
                tokens = flops / (K * n)
                rows.append(
                    CurvePoint(
                        fingerprint=f"f{place}-{seed}",
                        system=f"dense-s{place}-cl",
                        seed=seed,
                        size=f"s{place}",
                        head="dense",
                        objective="cl",
                        variant="",
                        varied="",
                        collection="own",
                        parameters=round(n),
                        budget_flops=budget,
                        step=step,
                        steps=STEPS,
                        flops=flops,
                        tokens=tokens,
                        loss=1.0,
                        learning_rate=min(step / 50, 1.0) * 1e-3,
                        gradient_norm=1.0,
                        held_out=float(loss(n, tokens) * factor) if step >= 50 else 50.0,
                        active_terms=None,
                        collapse=0.1,
                    )
                )
    return table_of(rows, CurvePoint).to_pandas()


SIZES = np.geomspace(1e4, 1e8, 9)


def test_points_of_the_warm_up_are_left_out():
    (series,) = curve_series(planted(SIZES))
    assert series.losses_R.max() < 50
    spent = series.covariate("C")
    assert spent.min() == pytest.approx(1e13 * 53 / STEPS)  # the first point past it


def test_the_planted_law_and_its_forecast_come_back():
    (series,) = curve_series(planted(SIZES, noise=0.01))
    study = Study(draws=200)
    study.fit_points(series, find_law("chinchilla"))
    (fitted,) = study.fits
    for name, truth in (("a", ALPHA), ("b", BETA)):
        assert fitted.parameters[name].low < truth < fitted.parameters[name].high
    assert fitted.clusters == "9 sizes"
    (predicted,) = study.forecasts[0].predictions  # both seeds' ends are one design
    assert predicted.size == "s8"
    assert predicted.seeds == (0, 1)
    assert predicted.held


def test_points_of_one_curve_count_as_one_run():
    """Twice as many points of the same runs say hardly more of what moves whole runs."""
    widths = []
    for points in (8, 16):
        (series,) = curve_series(planted(SIZES, noise=0.05, points=points))
        study = Study(draws=200)
        study.fit_points(series, find_law("chinchilla"))
        exponent = study.fits[0].parameters["a"]
        widths.append(exponent.high - exponent.low)
    assert widths[1] > 0.7 * widths[0]


def test_the_envelope_moves_to_larger_sizes_as_the_optimum_does():
    (series,) = curve_series(planted(np.geomspace(1e4, 1e8, 33), noise=0.0, budget=1e14))
    found = envelope(series)
    # Where A/N^a + B/D^b is least along C = K N D, N grows as C^(b / (a + b)).
    assert found.exponent.value == pytest.approx(BETA / (ALPHA + BETA), abs=0.05)
    assert not found.open_ends
    assert (np.diff(found.parameters_C) >= 0).all()
    best = (ALPHA * A / (BETA * B) * (found.flops_C / K) ** BETA) ** (1 / (ALPHA + BETA))
    assert np.abs(np.log(found.parameters_C / best)).max() < 0.5


def test_its_interval_holds_the_truth_as_often_as_it_says():
    truth = BETA / (ALPHA + BETA)
    held = 0
    for rng in range(20):
        sizes = np.geomspace(1e4, 1e8, 17)
        (series,) = curve_series(planted(sizes, seeds=3, noise=0.01, budget=1e14, rng=rng))
        found = envelope(series, draws=200)
        assert found.degrees_of_freedom == 34
        held += found.exponent.low <= truth <= found.exponent.high
    assert held >= 16


def test_without_a_second_seed_there_is_no_interval():
    (series,) = curve_series(planted(SIZES, seeds=1))
    found = envelope(series)
    assert found.degrees_of_freedom == 0
    assert np.isnan([found.exponent.low, found.exponent.high]).all()


def test_two_sizes_are_no_envelope():
    (series,) = curve_series(planted(SIZES[:2]))
    with pytest.raises(ConfigError, match=r"2 size\(s\) with curves"):
        envelope(series)


def test_the_command_fits_them(tmp_path):
    store = Store(str(tmp_path))
    rows = planted(SIZES, noise=0.01).astype(object).to_dict("records")
    write_table(store, CURVES, [CurvePoint(**row) for row in rows], CurvePoint)
    arguments = ["fit", "--storage", str(tmp_path), "--curves", "--draws", "60"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for part in ("envelope of the curves", "chinchilla", "forecasts", "dense cl own held-out CE"):
        assert part in done.stdout
    for wrong in (["--law", "size"], ["--data", "examples"], ["--head", "sparse"]):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code != 0

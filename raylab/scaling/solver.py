"""Minimise the Huber loss of log residuals, for many data sets and starts at once.

A law says where fits of it start (`Law.starts`). The best starts are refined in all parameters together
by Levenberg-Marquardt steps on iteratively reweighted least squares, projected onto the bounds.
Everything is deterministic.

Legend: S problems side by side, R runs, K covariates, P parameters.
"""

from __future__ import annotations

import numpy as np

from raylab.scaling.laws import Law

DELTA = 1e-3  # Huber's, on log residuals (2203.15556)
SQUARES = 1e6  # a delta beyond every residual
_REFINED = 24
_FIRST_STEPS, _STEPS = 12, 150
_DAMPING = (1e-12, 1e-3, 1e9)


def huber(residuals_SR: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Sum over runs of Huber's loss, float64 [S]."""
    size = np.abs(residuals_SR)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(-1)


def solve(law: Law, x_RK: np.ndarray, y_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best theta, float64 [P], and the starts it came from, best first, float64 [S, P].

    Args:
        x_RK: logs of the covariates, centred.
        y_R: losses, positive and near 1.
    """
    starts = law.starts(x_RK, y_R)
    objective = huber(np.log(y_R) - np.log(law.value(starts, x_RK)))
    starts = starts[np.argsort(objective, kind="stable")]
    refined, objective = refine(law, starts[:_REFINED], x_RK, np.log(y_R))
    return refined[np.argmin(objective)], starts


def solve_draws(
    law: Law, x_RK: np.ndarray, log_y_SR: np.ndarray, best_P: np.ndarray, starts_SP: np.ndarray
) -> np.ndarray:
    """The best theta of each of S data sets near one that has been solved, float64 [S, P].

    Each starts from that one's solution and from the two starts that are best for its own data; the one that
    is ahead after some steps is refined to the end.
    """
    draws = len(log_y_SR)
    log_value = np.log(law.value(starts_SP[: 4 * _REFINED], x_RK))
    objective = np.stack([huber(log_y_SR - one) for one in log_value], -1)
    best_starts = starts_SP[np.argpartition(objective, 1, axis=-1)[:, :2]]
    theta = np.concatenate([np.broadcast_to(best_P, (draws, 1, len(best_P))), best_starts], 1)
    count = theta.shape[1]
    flat, objective = refine(
        law, theta.reshape(draws * count, -1), x_RK, np.repeat(log_y_SR, count, 0), _FIRST_STEPS
    )
    ahead = objective.reshape(draws, count).argmin(-1)
    theta = flat.reshape(draws, count, -1)[np.arange(draws), ahead]
    return refine(law, theta, x_RK, log_y_SR)[0]


def refine(
    law: Law,
    theta_SP: np.ndarray,
    x_RK: np.ndarray,
    log_y_SR: np.ndarray,
    steps: int = _STEPS,
    delta: float = DELTA,
) -> tuple[np.ndarray, np.ndarray]:
    """Refined theta, float64 [S, P], and their objective, float64 [S]; it never rises.

    Args:
        log_y_SR: of each problem, or [R] of all.
        delta: Huber's; `SQUARES` makes it least squares.
    """
    low, high = law.bounds
    theta = np.clip(theta_SP, low, high)
    log_y = np.broadcast_to(log_y_SR, (len(theta), len(x_RK)))
    log_value, jacobian = law.log_jacobian(theta, x_RK)
    objective = huber(log_y - log_value, delta)
    damping = np.full(len(theta), _DAMPING[1])
    still = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(steps):
        moved = _step(theta[active], log_y[active] - log_value[active], jacobian[active],
                      damping[active], low, high, delta)  # fmt: skip
        new_value, new_jacobian = law.log_jacobian(moved, x_RK)
        new = huber(log_y[active] - new_value, delta)
        better = new < objective[active]
        small = objective[active] - new <= 1e-9 * objective[active]
        still[active] = np.where(better & ~small, 0, still[active] + 1)
        taken = active[better]
        theta[taken], objective[taken] = moved[better], new[better]
        log_value[taken], jacobian[taken] = new_value[better], new_jacobian[better]
        factor = np.where(better, 0.2, 5.0)
        damping[active] = np.clip(damping[active] * factor, _DAMPING[0], _DAMPING[2])
        active = active[still[active] < 6]
        if not len(active):
            break
    return theta, objective


def _step(
    theta: np.ndarray,
    residuals: np.ndarray,
    jacobian: np.ndarray,
    damping: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    delta: float,
) -> np.ndarray:
    """Where one damped Gauss-Newton step of the reweighted problem leads, within the bounds."""
    weights = delta / np.maximum(np.abs(residuals), delta)
    weighted = jacobian * weights[..., None]
    gradient = np.matmul(weighted.swapaxes(-1, -2), residuals[..., None])[..., 0]
    held = ((theta <= low) & (gradient < 0)) | ((theta >= high) & (gradient > 0))
    normal = np.matmul(weighted.swapaxes(-1, -2), jacobian)
    free = ~held
    normal = normal * (free[..., :, None] & free[..., None, :])
    diagonal = np.einsum("spp->sp", normal)
    diagonal += damping[:, None] * diagonal + np.where(held, 1.0, 1e-14)
    step = np.linalg.solve(normal, np.where(held, 0.0, gradient)[..., None])[..., 0]
    return np.clip(theta + step, low, high)

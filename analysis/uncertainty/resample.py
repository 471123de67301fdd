"""Laws of several parameters fitted to a table of points, with intervals from resampled runs.

The runs are what is independent: the points of one curve share its seed. A replicate therefore draws whole runs with
replacement, as weights (how often each was drawn), and starts from the distinct best optima of the fit itself.
Replicates that lose too many sizes or horizons to determine the law are drawn again, and the number is said. The
deviations of the replicates are widened by sqrt(runs/(runs - parameters)), as cluster-robust errors are. Of simulated
intervals of the four constants of L(N, S_min), nominally 90%, 84 to 92% covered the truth with 24 runs and 78 to 81%
with 8 without it; with it 90 to 91% and 90 to 93%.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import engine
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.uncertainty.bootstrap import estimate
from sweep.schema import InputError

FEW_RUNS = 6  # below, resampled runs are few and lumpy: simulated intervals of 5 and 6 covered 93 to 98%
_OPTIMA = 3  # distinct best optima from which every replicate starts
_RIVAL = 0.5  # of the best objective: optima farther above it stay worse in replicates
_STEP = 1e-6  # of the numerical derivatives of the constants, relative


@dataclass(frozen=True)
class Task:
    """One law and its points.

    columns: what the law takes, [n] each, by name. loss: [n]. weights: [n]. run: [n], which run each point is of.
    solve: from weights [k, n] and starts [s, p] to the fits of the k problems. starts: [s, p]. constants: from theta
    [..., p] to the law's constants by name. ln_fitted: from theta [p] to ln(loss) [n]. least: distinct values of a
    column without which the law is not determined. squared: the loss is, so that its curvature gives standard errors.
    """

    law: str
    columns: Mapping[str, np.ndarray]
    loss: np.ndarray
    weights: np.ndarray
    run: np.ndarray
    solve: Callable[[np.ndarray, np.ndarray], engine.Fit]
    starts: np.ndarray
    constants: Callable[[np.ndarray], dict[str, np.ndarray]]
    ln_fitted: Callable[[np.ndarray], np.ndarray]
    least: Mapping[str, int]
    squared: bool


def points(
    law: str,
    columns: Mapping[str, np.ndarray],
    loss: np.ndarray,
    weights: np.ndarray | None = None,
    run: Sequence[object] | np.ndarray | None = None,
    *,
    least_points: int,
    least: Mapping[str, int],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Columns, loss, weights and the runs' numbers of the rows that take part (those of weight 0 do not).

    Without `run` every row is a run of its own. Raises InputError for arrays that differ in length, values that are not
    positive numbers, fewer than `least_points` rows or fewer distinct values of a column than `least` asks.
    """
    given = {name: np.asarray(v, dtype=float) for name, v in {**columns, "loss": loss}.items()}
    w = np.ones_like(given["loss"]) if weights is None else np.asarray(weights, dtype=float)
    labels = np.arange(w.size) if run is None else np.asarray(run)
    shapes = {name: v.shape for name, v in {**given, "weights": w, "run": labels}.items()}
    if given["loss"].ndim != 1 or len(set(shapes.values())) > 1:
        raise InputError(f"{law}: the columns must be of one length, not {shapes}")
    for name, values in given.items():
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            raise InputError(
                f"{law}: {name} must be positive numbers; remove the other {len(wrong)} rows (the first is row "
                f"{wrong[0]}, {values[wrong[0]]:g})"
            )
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise InputError(f"{law}: weights must be finite and at least 0")
    used = w > 0
    kept = {name: values[used] for name, values in given.items()}
    for name, number in least.items():
        found = len(np.unique(kept[name]))
        if found < number:
            raise InputError(f"{law}: {found} distinct {name} do not determine the law; give at least {number}")
    if used.sum() < least_points:
        raise InputError(f"{law}: {used.sum()} points do not determine the law; give at least {least_points}")
    return kept, kept.pop("loss"), w[used], np.unique(labels[used], return_inverse=True)[1]


def fit(task: Task, *, bootstrap: int = 0, seed: int = 0, device: str = "cpu") -> Outcome:
    """Fit the task and `bootstrap` replicates of it. Replicates that do not converge from the best optima are tried
    from all starts; those that then do not are nan in the draws and counted in a warning."""
    began = time.perf_counter()
    warnings = Warnings()
    best = task.solve(task.weights[None], task.starts)
    theta = best.parameters[0]
    if not best.converged[0]:
        warnings.add(task.law, "not_converged", "the fit did not converge; its constants are not a minimum")
    value = {name: float(v) for name, v in task.constants(theta).items()}
    draws: dict[str, np.ndarray] = {}
    interval = "none"
    if bootstrap:
        draws = task.constants(_replicates(task, best, bootstrap, seed, warnings))
        estimates = {name: estimate(np.append(value[name], draws[name])) for name in value}
        interval = f"percentiles of {bootstrap} bootstraps over {task.run.max() + 1} runs"
    else:
        se = _least_squares_errors(task, theta, best) if task.squared else dict.fromkeys(value)
        estimates = {name: Estimate(value[name], se[name]) for name in value}
    ln_fitted = task.ln_fitted(theta)
    frame = pd.DataFrame({**task.columns, "loss": task.loss, "weight": task.weights, "fitted": np.exp(ln_fitted)})
    frame["residual"] = np.log(task.loss) - ln_fitted
    return Outcome(
        task.law,
        estimates,
        len(task.loss),
        objective=float(best.objective[0]),
        starts=len(task.starts),
        draws=draws,
        bootstrap=bootstrap,
        interval=interval,
        device=device,
        seconds=time.perf_counter() - began,
        span={name: (float(v.min()), float(v.max())) for name, v in {**task.columns, "loss": task.loss}.items()},
        frames={"points": frame},
        warnings=warnings,
    )


def run_counts(
    run: np.ndarray,
    columns: Mapping[str, np.ndarray],
    least: Mapping[str, int],
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """How often each point's run is drawn [count, n], and how many replicates had to be drawn again because a column
    was left with fewer than `least` distinct values. run: [n] whole numbers from 0."""
    runs = int(run.max()) + 1

    def short(drawn: np.ndarray) -> np.ndarray:
        lacking = np.zeros(len(drawn), dtype=bool)
        for name, number in least.items():
            values, place = np.unique(columns[name], return_inverse=True)
            has = np.zeros((runs, len(values)))
            has[run, place] = 1
            lacking |= ((drawn @ has) > 0).sum(axis=1) < number
        return lacking

    drawn = rng.multinomial(runs, np.full(runs, 1 / runs), count).astype(float)
    again, lacking = 0, short(drawn)
    while lacking.any():
        number = int(lacking.sum())
        drawn[lacking] = rng.multinomial(runs, np.full(runs, 1 / runs), number)
        again += number
        lacking = short(drawn)
    return drawn[:, run], again


def distinct(optima: np.ndarray, objective: np.ndarray, number: int = _OPTIMA) -> np.ndarray:
    """The best few [k, p] of the optima [s, p], sorted by their objective [s], that differ in it and may become the
    best of resampled runs."""
    kept = [0]
    for k in range(1, len(optima)):
        rival = objective[k] <= (1 + _RIVAL) * objective[0]
        if rival and len(kept) < number and objective[k] - objective[kept[-1]] > 1e-6 * objective[0]:
            kept.append(k)
    return optima[kept]


def _replicates(task: Task, best: engine.Fit, count: int, seed: int, warnings: Warnings) -> np.ndarray:
    """theta [count, p]; nan where it did not converge."""
    runs = int(task.run.max()) + 1
    if runs < FEW_RUNS:
        warnings.add(
            task.law, "few_runs", f"{runs} runs are few to resample: the intervals are rough"
        )  # fmt: skip
    counts, again = run_counts(task.run, task.columns, task.least, count, np.random.default_rng(seed))
    if again:
        what = ", ".join(f"{number} distinct {name}" for name, number in task.least.items())
        warnings.add(task.law, "redrawn", f"{again} samples of runs without {what} were drawn again ({count} kept)")
    begin = distinct(best.optima[0], best.optima_objective[0])
    found = task.solve(task.weights * counts, begin)
    theta, failed = found.parameters.copy(), ~found.converged
    if failed.any():
        second = task.solve((task.weights * counts)[failed], task.starts)
        theta[failed] = np.where(second.converged[:, None], second.parameters, np.nan)
        number = int((~second.converged).sum())
        if number:
            warnings.add(
                task.law, "replicates_not_converged", f"{number} of {count} replicates did not converge; they are left "
                "out of the intervals"
            )  # fmt: skip
    # p fitted constants take p/runs off the square of the residuals, and so off what resampling gives.
    freedom = max(1, runs - theta.shape[1])
    return best.parameters + np.sqrt(runs / freedom) * (theta - best.parameters)


def _least_squares_errors(task: Task, theta: np.ndarray, best: engine.Fit) -> dict[str, float | None]:
    """Of the constants, by the curvature of the sum of squares; all points count as independent."""
    freedom = len(task.loss) - len(theta)
    if freedom < 1:
        return dict.fromkeys(task.constants(theta))
    covariance = np.linalg.pinv(best.gram[0], hermitian=True) * best.objective[0] / freedom
    steps = _STEP * (1 + np.abs(theta))
    moved = theta + np.concatenate([np.diag(steps), -np.diag(steps)])
    errors: dict[str, float | None] = {}
    for name, values in task.constants(moved).items():
        slope = (values[: len(theta)] - values[len(theta) :]) / (2 * steps)
        errors[name] = float(np.sqrt(max(0.0, slope @ covariance @ slope)))
    return errors

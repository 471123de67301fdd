"""What the surfaces have in common: the points they are fitted to, in every sample, and what is said of the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis import engine
from analysis.outcome import Warnings
from analysis.tables.runs import Run
from analysis.uncertainty.bootstrap import Samples

_MISFIT = 3.0  # times the seed noise: residuals beyond this are the law's, not the noise's


def warn_misfit(law: str, residual: np.ndarray, sigma: float, warnings: Warnings) -> None:
    """The intervals hold noise, not the error of a form that does not fit."""
    rms = float(np.sqrt(np.mean(residual**2)))
    if rms > _MISFIT * sigma:
        warnings.add(
            law, "misfit", f"the law misses the measured ln(loss) by {rms:.1%} on average, {rms / sigma:.0f} times "
            "the seed noise; its intervals do not hold that error"
        )  # fmt: skip


def draws_of(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What comes after the first sample, the runs themselves; none without replicates."""
    return {name: values[1:] for name, values in constants.items() if len(values) > 1}


def span_of(**quantities: np.ndarray) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of what a law was fitted on, by quantity."""
    return {name: (float(np.min(values)), float(np.max(values))) for name, values in quantities.items()}


def coordinates(runs: Sequence[Run], where: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """N and D of (run, ln tokens)."""
    return np.array([runs[i].params for i, _ in where]), np.exp([x for _, x in where])


def losses(samples: Samples, where: Sequence[tuple[int, float]]) -> np.ndarray:
    """Smoothed loss [samples, points]; a decayed run's is its last evaluation."""
    out = np.empty((len(samples), len(where)))
    members: dict[int, list[int]] = {}
    for k, (i, _) in enumerate(where):
        members.setdefault(i, []).append(k)
    x = np.array([value for _, value in where])
    for i, rows in members.items():
        if samples.runs[i].decayed:
            out[:, rows] = samples.last(i)[:, None]
        else:
            out[:, rows] = samples.curves(i).ln_loss(x[rows])
    return np.exp(out)


def points_of(runs: Sequence[Run], where: Sequence[tuple[int, float]]) -> pd.DataFrame:
    """One row a reading (run, ln tokens): run_id, group, params and tokens."""
    rows = [(runs[i].run_id, runs[i].group, runs[i].params, math.exp(x)) for i, x in where]
    return pd.DataFrame(rows, columns=["run_id", "group", "params", "tokens"])


def settled(
    law: str,
    refit: Callable[[np.ndarray, np.ndarray | None], engine.Fit],
    begin: np.ndarray,
    count: int,
    warnings: Warnings,
) -> np.ndarray:
    """theta of every replicate [count, p]. Those that do not converge from `begin` are tried from all starts (None);
    what then fails is nan and counted in a warning."""
    found = refit(np.arange(count), begin)
    theta, failed = found.parameters.copy(), np.flatnonzero(~found.converged)
    if len(failed):
        second = refit(failed, None)
        theta[failed] = np.where(second.converged[:, None], second.parameters, np.nan)
        number = int((~second.converged).sum())
        if number:
            warnings.add(
                law, "replicates_not_converged", f"{number} of {count} replicates did not converge; they are left out "
                "of the intervals"
            )  # fmt: skip
    return theta

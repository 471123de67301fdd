"""Power laws y = coefficient * x^exponent (+ offset), fitted on logarithms.

    from analysis import power_law
    law = power_law.fit(flops, loss, offset=True, bootstrap=1000)
    law.estimates["exponent"]          # value, standard error, 90% interval

Residuals are ln(y) - ln(fitted), squared unless asked otherwise. An offset is at least 0: where the data show none, the
law without is returned with offset 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import engine
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.uncertainty import redraw
from sweep.schema import InputError

LAW = "power-law"
_SHARES = (0.99, 0.9, 0.7, 0.4, 0.1, 1e-3)  # of the smallest y, tried as offset
_FACTORS = (1, 2, 4)  # of the slope without an offset, tried as exponent
_NOTHING = 1e-3  # of the offset: a power that small is not seen beside it
_FLAT = 1e-9  # relative gain of an offset below which there is none


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent."""

    coefficient: Estimate
    exponent: Estimate

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """The law's value at `x`."""
        return np.asarray(self.coefficient.value * np.asarray(x, dtype=float) ** self.exponent.value)

    def to_json(self) -> dict[str, object]:
        """Both estimates as plain data."""
        return {"coefficient": self.coefficient.to_json(), "exponent": self.exponent.to_json()}


def line(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """(intercept, slope) of the weighted least-squares line; pairs with a nan are left out, and fewer than two distinct
    x give nan."""
    good = np.isfinite(x) & np.isfinite(y)
    w = np.ones(int(good.sum())) if weights is None else weights[good]
    x, y = x[good], y[good]
    if len(x) < 2 or w.sum() <= 0:
        return np.nan, np.nan
    mean_x, mean_y = w @ x / w.sum(), w @ y / w.sum()
    spread = float(w @ (x - mean_x) ** 2)
    if spread <= 0:
        return np.nan, np.nan
    if (y == y[0]).all():
        return float(y[0]), 0.0  # exactly, where rounding would leave a slope of 1e-30
    slope = float((w * (x - mean_x)) @ (y - mean_y)) / spread
    return float(mean_y - slope * mean_x), slope


@dataclass(frozen=True)
class _Problem:
    """The law in centred logarithms, so that a change of units moves the coefficient alone. theta: (intercept,
    exponent, ln offset), the last one -inf where there is no offset."""

    u: np.ndarray  # ln x less its mean [n]
    mean_x: float
    mean_y: float
    offset: bool
    loss: engine.Loss
    delta: float
    device: str

    def solve(
        self, target: np.ndarray, starts: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """theta [k, 3], objective [k], converged [k] and gram [k, p, p] for centred ln y [k, n] or [n]. starts: [s, 3];
        those without an offset start the law without."""
        plain = self._solve(target, starts[:1, :2], weights)
        theta = np.column_stack([plain.parameters, np.full(len(plain.parameters), -np.inf)])
        if not self.offset:
            return theta, plain.objective, plain.converged, plain.gram
        full = self._solve(target, starts[np.isfinite(starts[:, 2])], weights)
        better = full.objective < plain.objective * (1 - _FLAT)
        theta = np.where(better[:, None], full.parameters, theta)
        objective = np.where(better, full.objective, plain.objective)
        return theta, objective, np.where(better, full.converged, plain.converged), full.gram

    def _solve(self, target: np.ndarray, starts: np.ndarray, weights: np.ndarray) -> engine.Fit:
        design = np.zeros((starts.shape[1] - 1, len(self.u), starts.shape[1]))
        design[0, :, 0], design[0, :, 1] = 1, self.u
        design[1:, :, 2:] = 1
        return engine.solve(
            design, target, starts, weights=weights, loss=self.loss, delta=self.delta, device=self.device
        )

    def starts(self, v: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """[s, 3] for centred ln y [n]; the first is the law without an offset."""
        intercept, slope = line(self.u, v, weights)
        rows = [[intercept, slope, -np.inf]]
        if self.offset:
            shares = np.log(_SHARES)
            rows += [[intercept + np.log1p(-np.exp(s)), f * slope, v.min() + s] for s in shares for f in _FACTORS]
        return np.array(rows)

    def values(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The law's constants [k] in the units of x and y."""
        with np.errstate(over="ignore"):  # an exponent of hundreds, from x that hardly differ
            coefficient = np.exp(theta[:, 0] + self.mean_y - theta[:, 1] * self.mean_x)
        found = {"coefficient": coefficient, "exponent": theta[:, 1]}
        return found | ({"offset": np.exp(theta[:, 2] + self.mean_y)} if self.offset else {})

    def fitted(self, theta: np.ndarray) -> np.ndarray:
        """Centred ln y [n] of one theta."""
        return np.asarray(np.logaddexp(theta[0] + theta[1] * self.u, theta[2]))

    def on_one_x(self, theta: np.ndarray) -> float | None:
        """The one u at which the power amounts to anything beside the offset; None where there are more."""
        u = np.unique(self.u)
        seen = theta[0] + theta[1] * u - theta[2] > np.log(_NOTHING)
        return float(u[seen][0]) if seen.sum() == 1 else None

    def se(self, theta: np.ndarray, gram: np.ndarray, variance: float) -> dict[str, float]:
        """Least-squares standard errors of `values` of one theta."""
        without = not np.isfinite(theta[2])
        covariance = np.linalg.pinv(gram[:2, :2] if without else gram, hermitian=True) * variance
        jacobian = np.eye(len(covariance))
        jacobian[0, 1] = -self.mean_x
        relative = np.sqrt(np.clip(np.diag(jacobian @ covariance @ jacobian.T), 0, None))
        found = {name: float(v[0]) for name, v in self.values(theta[None]).items()}
        out = {"coefficient": found["coefficient"] * relative[0], "exponent": relative[1]}
        return out | ({"offset": 0.0 if without else found["offset"] * relative[2]} if self.offset else {})


def fit(
    x: np.ndarray,
    y: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    offset: bool = False,
    loss: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Fit y = coefficient * x^exponent, with `offset` y = coefficient * x^exponent + offset.

    x, y: [n], positive, any units. weights: [n], at least 0, relative inverse variances of ln y. loss: of the residuals
    ln y - ln fitted: "squared" (r^2), "huber" (r^2/2 within `delta`, delta (|r| - delta/2) beyond) or "absolute".
    bootstrap: replicates behind the intervals, 0 for none; for squared loss noise redrawn around the fitted curve with
    a redrawn variance (`analysis.uncertainty.redraw`), else rows resampled as weights. Without, standard errors are
    those of least squares for squared loss, and None for the others. `draws` holds the replicates.

    Raises InputError for arrays that differ in length, values that are not positive, weights below 0, or no more
    distinct x than parameters.
    """
    began = time.perf_counter()
    x, y, w = _checked(x, y, weights, 3 if offset else 2)
    ln_x, ln_y = np.log(x), np.log(y)
    problem = _Problem(ln_x - ln_x.mean(), float(ln_x.mean()), float(ln_y.mean()), offset, loss, delta, device)
    v = ln_y - ln_y.mean()
    starts = problem.starts(v, w)
    best, objective, converged, gram = (part[0] for part in problem.solve(v, starts, w))
    warnings = Warnings()
    if not converged:
        warnings.add(LAW, "not_converged", "the fit did not converge; its constants are not a minimum")
    if offset and not np.isfinite(best[2]):
        warnings.add(LAW, "offset_at_zero", "no offset above 0 fits better than none; the law without one is given")
    if offset and np.isfinite(best[2]) and (only := problem.on_one_x(best)) is not None:
        warnings.add(
            LAW, "exponent_undetermined", f"the power is seen at x = {x[problem.u == only][0]:g} only; the "
            "offset alone is the law at all others, and the exponent is not determined"
        )  # fmt: skip
    freedom = len(x) - (2 if not np.isfinite(best[2]) else 3)
    variance = objective / freedom
    value = {name: float(draw[0]) for name, draw in problem.values(best[None]).items()}
    if bootstrap:
        noise = variance if loss == "squared" else None
        estimates, draws = _replicate(problem, v, w, best, starts, noise, freedom, bootstrap, seed, warnings)
    else:
        se = problem.se(best, gram, variance) if loss == "squared" else dict.fromkeys(value)
        estimates, draws = {name: Estimate(value[name], se[name]) for name in value}, {}
    fitted = problem.fitted(best)
    points = pd.DataFrame({"x": x, "y": y, "weight": w, "fitted": np.exp(fitted + ln_y.mean()), "residual": v - fitted})
    return Outcome(
        LAW,
        estimates,
        len(x),
        objective=float(objective),
        starts=len(starts),
        draws=draws,
        bootstrap=bootstrap,
        interval=_words(loss, freedom) if bootstrap else "none",
        device=device,
        seconds=time.perf_counter() - began,
        span={"x": (x.min(), x.max()), "y": (y.min(), y.max())},
        frames={"points": points},
        warnings=warnings,
    )


def _checked(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, free: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that take part, as floats: those of weight 0 do not."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if x.ndim != 1 or not x.shape == y.shape == w.shape:
        raise InputError(f"{LAW}: x, y and weights must be of one length, not {x.shape}, {y.shape} and {w.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise InputError(f"{LAW}: x and y must be positive numbers; remove the other rows")
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise InputError(f"{LAW}: weights must be finite and at least 0")
    used = w > 0
    number = len(np.unique(x[used]))
    if number <= free:
        raise InputError(
            f"{LAW}: {number} distinct x do not determine {free} parameters and their error; give at least {free + 1}"
        )
    return x[used], y[used], w[used]


def _replicate(
    problem: _Problem,
    v: np.ndarray,
    w: np.ndarray,
    best: np.ndarray,
    starts: np.ndarray,
    variance: float | None,
    freedom: int,
    count: int,
    seed: int,
    warnings: Warnings,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """Estimates and draws from `count` refits, around the fit where the noise's `variance` is given."""
    rng = np.random.default_rng(seed)
    if variance is not None:
        scale = redraw.scales(freedom, count, rng)
        noise = rng.standard_normal((count, len(v))) * np.sqrt(variance / w)
        targets, weights = problem.fitted(best) + scale[:, None] * noise, w
    else:
        scale = np.ones(count)
        targets, weights = v, w * _resampled(problem.u, 3 if problem.offset else 2, count, rng)
    begin = np.concatenate([starts[:1], best[None], starts[1::5]]) if problem.offset else starts
    theta, _, converged, _ = problem.solve(targets, begin, weights)
    if not converged.all():
        warnings.add(
            LAW, "replicates_not_converged", f"{(~converged).sum()} of {count} replicates did not converge; they are "
            "left out of the intervals"
        )  # fmt: skip
    draws = {name: np.where(converged, values, np.nan) for name, values in problem.values(theta).items()}
    value = problem.values(best[None])
    estimates = {
        name: redraw.interval(float(value[name][0]), draws[name], scale, logarithm=name == "coefficient")
        for name in draws
    }
    return estimates, draws


def _resampled(u: np.ndarray, free: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn [count, n]. Samples with fewer distinct x than parameters determine nothing and are
    drawn again."""
    _, place = np.unique(u, return_inverse=True)
    one_hot = np.eye(place.max() + 1)[place]
    counts = rng.multinomial(len(u), np.full(len(u), 1 / len(u)), count)
    while (short := ((counts @ one_hot) > 0).sum(axis=1) < free).any():
        counts[short] = rng.multinomial(len(u), np.full(len(u), 1 / len(u)), int(short.sum()))
    return counts.astype(float)


def _words(loss: str, freedom: int) -> str:
    if loss == "squared":
        return f"percentiles of refits to noise redrawn with its variance ({freedom} degrees of freedom)"
    return "percentiles of refits to resampled rows"

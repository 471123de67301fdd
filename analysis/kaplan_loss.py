"""Kaplan's laws of the loss against one resource, L = (X_c/X)^alpha, and against size and data together (Kaplan et al.
2020, Eqs. 1.1 to 1.3 and 1.5).

    law = kaplan_loss.fit_params(params, loss, bootstrap=1000)              # converged losses: N_c, alpha_N
    law = kaplan_loss.fit_params_tokens(params, tokens, loss, run=run_id)   # early-stopped: N_c, alpha_N, D_c, alpha_D

Each law needs losses in which the other resources do not bind: L(N) of converged runs on ample data, L(D) of large
models stopped when the test loss stops falling, L(C) of the best size at each compute. The one-resource laws have no
irreducible loss, so they hold over the range they were fitted on and no further (`power_law.fit` with an offset tests
that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis import engine, power_law
from analysis.outcome import Estimate, Outcome, Warnings
from analysis.uncertainty import resample
from analysis.uncertainty.bootstrap import estimate
from sweep.schema import PF_DAY, InputError

if TYPE_CHECKING:
    import torch

NAMES = ("N_c", "alpha_N", "D_c", "alpha_D")
LAW = "kaplan-nd"
LEAST_SIZES, LEAST_TOKENS, LEAST_POINTS = 3, 3, 9
_NEGLIGIBLE = 0.02  # share of ln L that a term must reach somewhere for its constants to mean something


def fit_params(
    params: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    kind: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """L(N) = (N_c/N)^alpha_N (Eq. 1.1), law "kaplan-n".

    params: N [n], without embeddings for Kaplan's convention. loss: [n], nats per token, of runs that converged on
    ample data. The other arguments, the intervals and the errors raised are those of `power_law.fit` (its `loss` is
    `kind` here).
    """
    return _fit_one("kaplan-n", "params", "N", params, loss, 1.0, weights, kind, delta, bootstrap, seed, device)


def fit_tokens(
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    kind: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """L(D) = (D_c/D)^alpha_D (Eq. 1.2), law "kaplan-d".

    tokens: distinct tokens D [n] of the data. loss: [n], nats per token, of large models stopped when their test loss
    stopped falling. Otherwise as `fit_params`.
    """
    return _fit_one("kaplan-d", "tokens", "D", tokens, loss, 1.0, weights, kind, delta, bootstrap, seed, device)


def fit_flops(
    flops: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    kind: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """L(C) = (C_c/C)^alpha_C (Eq. 1.3 and Table 5), law "kaplan-c".

    flops: C [n] in FLOP, raw or C_min. loss: [n], nats per token, of the best size at each compute. C_c is in PF-days
    (8.64e19 FLOP), as the paper prints it. Otherwise as `fit_params`.
    """
    return _fit_one("kaplan-c", "flops", "C", flops, loss, PF_DAY, weights, kind, delta, bootstrap, seed, device)


def scale_of(coefficient: npt.ArrayLike, exponent: npt.ArrayLike) -> np.ndarray:
    """X_c of L = coefficient X^exponent = (X_c/X)^alpha with alpha = -exponent; nan where the loss does not fall."""
    k, e = np.asarray(coefficient, dtype=float), np.asarray(exponent, dtype=float)
    with np.errstate(all="ignore"):
        return np.asarray(np.where(e < 0, np.exp(-np.log(k) / e), np.nan))


def fit_params_tokens(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    run: Sequence[object] | np.ndarray | None = None,
    kind: engine.Loss = "squared",
    delta: float = 1e-3,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D (Eq. 1.5), law "kaplan-nd".

    params: N [n], without embeddings for Kaplan's convention. tokens: distinct tokens D [n] of the data. loss: [n],
    nats per token, of runs stopped when their test loss stopped falling. weights, run, kind, delta, bootstrap: as
    `kaplan.fit`. A warning names the resource that nowhere binds, whose constants then mean little.

    Raises InputError for values that are not positive, fewer than nine points, three sizes or three values of D.
    """
    least = {"params": LEAST_SIZES, "tokens": LEAST_TOKENS}
    columns, y, w, labels = resample.points(
        LAW, {"params": params, "tokens": tokens}, loss, weights, run, least_points=LEAST_POINTS, least=least
    )
    ln_n, ln_d = np.log(columns["params"]), np.log(columns["tokens"])
    middle = float(ln_n.mean()), float(ln_d.mean())
    data = ln_n - middle[0], ln_d - middle[1]

    def solve(weights: np.ndarray, starts: np.ndarray) -> engine.Fit:
        return engine.solve_curve(
            _curve, data, np.log(y), starts, weights=weights, loss=kind, delta=delta, device=device
        )

    def ln_fitted(theta: np.ndarray) -> np.ndarray:
        a, ratio, c, alpha_d = theta
        return np.asarray(alpha_d * np.logaddexp(a - ratio * data[0], c - data[1]))

    task = resample.Task(
        law=LAW,
        columns=columns,
        loss=y,
        weights=w,
        run=labels,
        solve=solve,
        starts=_starts(float(np.log(y).mean())),
        constants=lambda theta: _constants(theta, middle),
        ln_fitted=ln_fitted,
        least=least,
        squared=kind == "squared",
    )
    found = resample.fit(task, bootstrap=bootstrap, seed=seed, device=device)
    _warn_unbound(found)
    return found


def predict(constants: dict[str, float], params: npt.ArrayLike, tokens: npt.ArrayLike) -> np.ndarray:
    """Eq. 1.5 with the constants N_c, alpha_N, D_c and alpha_D."""
    n_c, alpha_n, d_c, alpha_d = (constants[name] for name in NAMES)
    size = (n_c / np.asarray(params, dtype=float)) ** (alpha_n / alpha_d)
    return np.asarray((size + d_c / np.asarray(tokens, dtype=float)) ** alpha_d)


def _fit_one(
    law: str,
    column: str,
    symbol: str,
    x: np.ndarray,
    loss: np.ndarray,
    unit: float,
    weights: np.ndarray | None,
    kind: engine.Loss,
    delta: float,
    bootstrap: int,
    seed: int,
    device: str,
) -> Outcome:
    """A power law in Kaplan's terms. unit: of X_c, in that of x."""
    try:
        found = power_law.fit(
            x, loss, weights=weights, loss=kind, delta=delta, bootstrap=bootstrap, seed=seed, device=device
        )
    except InputError as error:
        said = str(error).removeprefix(f"{power_law.LAW}: ").replace("x and y", f"{column} and loss")
        raise InputError(f"{law}: {said.replace('distinct x', f'distinct {column}')}") from None
    alpha, scale = f"alpha_{symbol}", f"{symbol}_c"
    slope, coefficient = found.estimates["exponent"], found.estimates["coefficient"]
    x_c = float(scale_of(coefficient.value, slope.value)) / unit
    draws = {}
    if found.draws:
        draws = {
            alpha: -found.draws["exponent"],
            scale: scale_of(found.draws["coefficient"], found.draws["exponent"]) / unit,
        }
        scaled = estimate(np.append(x_c, draws[scale]))
    else:
        scaled = Estimate(x_c)
    if kind == "squared":
        used = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
        middle = float(np.average(np.log(x), weights=used))
        scaled = replace(scaled, se=_scale_error(coefficient, slope, middle, x_c))
    warnings = Warnings()
    for item in found.warnings:
        warnings.add(law, item["code"], item["message"])
    if not slope.value < 0:
        warnings.add(law, "not_falling", f"the loss does not fall with {column}; {scale} has no meaning")
    points = found.frames["points"].rename(columns={"x": column, "y": "loss"})
    opposite = Estimate(-slope.value, slope.se, _minus(slope.high), _minus(slope.low))
    return replace(
        found,
        law=law,
        estimates={scale: scaled, alpha: opposite},
        draws=draws,
        span={column: found.span["x"], "loss": found.span["y"]},
        frames={"points": points},
        warnings=warnings,
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _scale_error(coefficient: Estimate, slope: Estimate, middle: float, x_c: float) -> float | None:
    """Standard error of X_c to first order, from those of the line ln L = k + e ln x; middle: the (weighted) mean of
    ln x, at which the line's height and slope are independent, so that cov(k, e) = -middle var(e)."""
    if coefficient.se is None or slope.se is None or not slope.value < 0:
        return None
    k, alpha = np.log(coefficient.value), -slope.value
    var_k, var_e = (coefficient.se / coefficient.value) ** 2, slope.se**2
    variance = var_k / alpha**2 + k**2 / alpha**4 * var_e - 2 * k / alpha**3 * middle * var_e
    return float(x_c * np.sqrt(max(0.0, variance)))


def _curve(theta: torch.Tensor, ln_n: torch.Tensor, ln_d: torch.Tensor) -> torch.Tensor:
    """ln L of Eq. 1.5: alpha_D ln(e^(a - r ln N) + e^(c - ln D)), r = alpha_N/alpha_D, in centred logarithms."""
    import torch

    a, ratio, c, alpha_d = theta
    return alpha_d * torch.logaddexp(a - ratio * ln_n, c - ln_d)


def _starts(level: float) -> np.ndarray:
    """[18, 4]: the middle point is met exactly, with several shares of the size term and exponents."""
    return np.array(
        [
            (level / alpha_d + np.log(share), ratio, level / alpha_d + np.log(1 - share), alpha_d)
            for share in (0.2, 0.8)
            for ratio in (0.4, 0.8, 1.4)
            for alpha_d in (0.05, 0.12, 0.3)
        ]
    )


def _constants(theta: np.ndarray, middle: tuple[float, float]) -> dict[str, np.ndarray]:
    """N_c, alpha_N, D_c and alpha_D from theta [..., 4]."""
    a, ratio, c, alpha_d = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(all="ignore"):
        values = np.exp(a / ratio + middle[0]), ratio * alpha_d, np.exp(c + middle[1]), alpha_d
    return dict(zip(NAMES, values, strict=True))


def _warn_unbound(found: Outcome) -> None:
    """One of the two terms may be negligible at every point."""
    frame, value = found.frames["points"], {name: e.value for name, e in found.estimates.items()}
    size = (value["N_c"] / frame["params"]) ** (value["alpha_N"] / value["alpha_D"])
    data = value["D_c"] / frame["tokens"]
    for name, own, other in (("params", size, data), ("tokens", data, size)):
        if value["alpha_D"] * np.log1p(own / other).max() < _NEGLIGIBLE:
            found.warnings.add(
                LAW, "unbound", f"{name} nowhere bind the loss (their term never adds {_NEGLIGIBLE:.0%}), so their "
                "constants mean little; add smaller values"
            )  # fmt: skip

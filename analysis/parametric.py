"""The parametric law L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3).

    law = parametric.fit(params, tokens, loss, run=run_id, bootstrap=4000)
    law.estimates["a"]                          # value, standard error, 90% interval
    parametric.optimal(theta, 1e21)             # N and D of least loss for 1e21 FLOP

Summed Huber loss (delta = 1e-3) of the residuals of ln L, the best of the paper's 4,500 starts (section D.3). From it
N_opt = G (C/6)^a and D_opt = (C/6)^b / G with a = beta/(alpha+beta), b = alpha/(alpha+beta) and
G = (alpha A / (beta B))^(1/(alpha+beta)) (Eq. 4). theta is (ln A, alpha, ln B, beta, ln E), or without an offset
(ln A, alpha, ln B, beta).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analysis import engine
from analysis.outcome import Outcome
from analysis.tables.runs import Run
from analysis.tables.sizes import Size, best_ends
from analysis.uncertainty import resample
from sweep.schema import InputError

LAW = "parametric"
DELTA = 1e-3
LEAST_SIZES, LEAST_TOKENS, LEAST_POINTS = 3, 3, 9
NAMES = ("A", "B", "E", "alpha", "beta", "a", "b", "G")
_POINTS_A_RUN, _SPAN = 6, 16.0  # an undecayed curve is read over its last factor of 16, as the paper's horizons span
_NO_OFFSET = 1e-3  # of the lowest loss: an E below is none
_OFTEN = 0.05  # share of replicates without an offset that is worth a warning
_SAME = 1e-6  # of the objective: optima nearer than this are equally good
_APART = 1e-3  # in alpha, beta or E over the lowest loss: optima farther apart than this are not the same
_FLAT = 1e-3  # an exponent below says that nothing is gained
_LOST = 2.0  # times the scatter: a term that is smaller everywhere is lost in it
_COLLINEAR = 1e-3  # scatter of ln D about its line in ln N below which runs vary in one direction only


def starts(offset: bool = True) -> np.ndarray:
    """The paper's grid [4500, 5] of (ln A, alpha, ln B, beta, ln E); without `offset` [900, 4]."""
    exponent, log_e, log_a = np.arange(0, 2.1, 0.5), np.arange(-1, 1.1, 0.5), np.arange(0.0, 26, 5)
    axes = [log_a, exponent, log_a, exponent, *([log_e] if offset else [])]
    return np.array(list(itertools.product(*axes)))


def fit(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    run: Sequence[object] | np.ndarray | None = None,
    offset: bool = True,
    kind: engine.Loss = "huber",
    delta: float = DELTA,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Fit A, B, E, alpha, beta, and a, b, G of the optimal N and D.

    params: N [n]. tokens: D [n], distinct ones (for repeated data see `analysis.repeated`). loss: [n], nats per token,
    final losses of decayed runs or all undecayed ones, never a mixture. weights: [n], at least 0. run: [n], which run a
    point is read from; the bootstrap draws whole runs (without it, every row is one). offset: whether there is an
    irreducible loss E; without, L = A/N^alpha + B/D^beta, and no estimate E. kind, delta: loss function of the
    residuals of ln L. bootstrap: replicates behind the percentile intervals; without, standard errors are those of
    least squares for squared loss, which count every point as independent, and None for Huber and absolute loss, where
    curvature says nothing of them (measured on the points of Hoffmann et al.'s fig. 4: 3 to 8 times too small).

    Raises InputError for values that are not positive, fewer than nine points, three sizes or three horizons, equal
    losses, or tokens that are the same power of params in every row.
    """
    least = {"params": LEAST_SIZES, "tokens": LEAST_TOKENS}
    columns, y, w, labels = resample.points(
        LAW, {"params": params, "tokens": tokens}, loss, weights, run, least_points=LEAST_POINTS, least=least
    )
    n, d = columns["params"], columns["tokens"]
    _refuse(n, d, y)
    fits: list[engine.Fit] = []

    def solve(weights: np.ndarray, begin: np.ndarray) -> engine.Fit:
        fits.append(_solve(n, d, y, begin, weights, kind, delta, device))
        return fits[-1]

    task = resample.Task(
        law=LAW,
        columns=columns,
        loss=y,
        weights=w,
        run=labels,
        solve=solve,
        starts=starts(offset),
        constants=constants,
        ln_fitted=lambda theta: np.log(predict(theta, n, d)),
        least=least,
        squared=kind == "squared",
    )
    found = resample.fit(task, bootstrap=bootstrap, seed=seed, device=device)
    flops = 6 * n * d
    found.span["flops"] = float(flops.min()), float(flops.max())
    _warn(found, fits[0])
    return found


def fit_parametric(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    from_starts: np.ndarray | None = None,
    kind: engine.Loss = "huber",
    delta: float = DELTA,
    device: str = "cpu",
) -> engine.Fit:
    """Best theta of each of many problems on the same params and tokens.

    params, tokens: [n]. loss: [n] or [problems, n]. weights: the same (bootstrap counts, for instance). from_starts:
    [k, 5] instead of the paper's grid, or [k, 4] for the law without an offset. Raises InputError for values that are
    not positive, fewer than three sizes or fewer than nine points.
    """
    for name, values in (("params", params), ("tokens", tokens), ("loss", loss)):
        if not (np.isfinite(values).all() and (np.asarray(values) > 0).all()):
            raise InputError(f"{LAW}: {name} must be positive numbers; remove the other rows")
    if len(np.unique(params)) < LEAST_SIZES or len(params) < LEAST_POINTS:
        raise InputError(
            f"{LAW}: {len(params)} points of {len(np.unique(params))} model sizes do not determine five "
            f"parameters; give at least {LEAST_POINTS} points of {LEAST_SIZES} sizes"
        )
    begin = starts() if from_starts is None else from_starts
    return _solve(params, tokens, loss, begin, weights, kind, delta, device)


def constants(theta: np.ndarray) -> dict[str, np.ndarray]:
    """A, B, E, alpha, beta, a, b and G from theta [..., 5]; without E from theta [..., 4]."""
    ln_a, alpha, ln_b, beta, *ln_e = np.moveaxis(np.asarray(theta), -1, 0)
    with np.errstate(all="ignore"):
        total = alpha + beta
        ln_g = (np.log(alpha) + ln_a - np.log(beta) - ln_b) / total
        found = {"A": np.exp(ln_a), "B": np.exp(ln_b), **({"E": np.exp(ln_e[0])} if ln_e else {})}
        return found | {"alpha": alpha, "beta": beta, "a": beta / total, "b": alpha / total, "G": np.exp(ln_g)}


def predict(theta: np.ndarray, params: npt.ArrayLike, tokens: npt.ArrayLike) -> np.ndarray:
    """Loss at (params, tokens) [...] for one theta [p]; for several [k, p] one row of losses each."""
    ln_a, alpha, ln_b, beta, *ln_e = (v[..., None] if np.ndim(theta) > 1 else v for v in np.moveaxis(theta, -1, 0))
    terms = np.exp(ln_a - alpha * np.log(params)) + np.exp(ln_b - beta * np.log(tokens))
    return np.asarray(terms + np.exp(ln_e[0]) if ln_e else terms)


def optimal(theta: np.ndarray, flops: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """N and D of least loss where 6 N D = `flops` (Eq. 4), shaped as `predict` gives losses."""
    with np.errstate(all="ignore"):
        found = constants(theta)
        a, g = (found[name][..., None] if np.ndim(theta) > 1 else found[name] for name in ("a", "G"))
        params = g * (np.asarray(flops, dtype=float) / 6) ** a
        return params, np.asarray(flops, dtype=float) / (6 * params)


def _solve(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    begin: np.ndarray,
    weights: np.ndarray | None,
    kind: engine.Loss,
    delta: float,
    device: str,
) -> engine.Fit:
    free = np.shape(begin)[-1]
    design = np.zeros((free - 2, len(params), free))
    design[0, :, 0] = design[1, :, 2] = 1
    design[0, :, 1], design[1, :, 3] = -np.log(params), -np.log(tokens)
    design[2:, :, 4:] = 1
    return engine.solve(design, np.log(loss), begin, weights=weights, loss=kind, delta=delta, device=device)


def _refuse(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> None:
    """Raises InputError for what no fit of the law can stand on."""
    if np.ptp(loss) == 0:
        raise InputError(f"{LAW}: every loss is {loss[0]:g}; give the loss that each run reached")
    x, y = np.log(params), np.log(tokens)
    slope, level = np.polyfit(x - x.mean(), y, 1)
    if np.abs(y - level - slope * (x - x.mean())).max() < _COLLINEAR:
        raise InputError(
            f"{LAW}: tokens are proportional to params^{slope:.2f} in every row, so that the effects of the two cannot "
            "be told apart; add runs of one size with other numbers of tokens"
        )


def _warn(found: Outcome, best: engine.Fit) -> None:
    """What a reader must know of the constants: those that the losses do not determine, and rival optima."""
    estimates, warnings = found.estimates, found.warnings
    lowest = found.span["loss"][0]
    if "E" in estimates:
        value, none = estimates["E"].value, _NO_OFFSET * lowest
        share = float(np.mean(found.draws["E"] < none)) if found.draws else 0.0
        often = "" if share < _OFTEN else f"; {share:.0%} of the replicates have none"
        if value < none or often:
            warnings.add(
                LAW, "no_offset", f"the offset E is not determined by these losses (E = {value:.2g}{often}); do not "
                "extrapolate the law"
            )  # fmt: skip
    points = found.frames["points"]
    scatter = float(np.sqrt(np.mean(points["residual"] ** 2)))
    for name, scale, what in (("alpha", "A", "params"), ("beta", "B", "tokens")):
        exponent = estimates[name].value
        share = float((estimates[scale].value * points[what] ** -exponent / points["fitted"]).max())
        if exponent < _FLAT or share < _LOST * scatter:
            warnings.add(
                LAW, "no_gain", f"the loss does not fall with {what} beyond the scatter ({name} = {exponent:.2g}, its "
                f"term is at most {share:.2g} of the loss); what follows from {name} means nothing"
            )  # fmt: skip
    ends = best.optima[0][best.optima_objective[0] <= best.objective[0] * (1 + _SAME)]
    places = np.stack([ends[:, 1], ends[:, 3], *([np.exp(ends[:, 4]) / lowest] if "E" in estimates else [])], axis=1)
    apart = np.abs(places - places[0])
    if (apart > _APART).any():
        other = places[apart.max(axis=1).argmax()]
        warnings.add(
            LAW, "two_optima", f"other constants fit as well: alpha {places[0, 0]:.3f} and {other[0]:.3f}, beta "
            f"{places[0, 1]:.3f} and {other[1]:.3f}; the points do not determine the law"
        )  # fmt: skip


def readings(runs: Sequence[Run], sizes: Sequence[Size]) -> list[tuple[int, float]]:
    """(run, ln tokens) of the points to fit: of decayed runs the ends, at each horizon those of the setting that ends
    lowest; of undecayed curves, of each size at its setting that ends lowest, six log-spaced points of every seed over
    the last factor of 16 past twice the warm-up. Raw tokens at the frontier's batch, so that approaches 1, 2 and 3
    speak of the same compute."""
    points: list[tuple[int, float]] = []
    for size in sizes:
        if size.decayed:
            points += [(i, float(runs[i].ln_tokens[-1])) for i in best_ends(runs, size)]
            continue
        best = min(size.settings, key=lambda s: float(np.mean([runs[i].curve.y[-1] for i in s])))
        for i in best:
            end = runs[i].curve.end
            start = max(end - np.log(_SPAN), runs[i].curve.start + np.log(2), runs[i].ln_tokens[0])
            if start < end:
                points += [(i, float(x)) for x in np.linspace(start, end, _POINTS_A_RUN)]
    return points

"""Loss on data that is passed over several times (Muennighoff et al. 2023, Eqs. 5 and 6).

L = E + A/N'^alpha + B/D'^beta, where repeated tokens and parameters beyond what the unique tokens support count for
less and less:

    D' = U_D + U_D R_D (1 - e^(-(D/U_D - 1)/R_D)),     U_D = min(unique tokens, D)
    N' = U_N + U_N R_N (1 - e^(-(N/U_N - 1)/R_N)),     U_N = min(best size for U_D tokens, N)

with the best size of the same law without repetition, U_N = G (G U_D)^(beta/alpha). D' tends to (1 + R_D) U_D. The law
knows no loss that rises again with more passes: leave such runs out, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis import engine, parametric
from analysis import published as pub
from analysis.outcome import Outcome, Warnings
from analysis.uncertainty import resample
from sweep.schema import InputError

if TYPE_CHECKING:
    import torch

LAW = "repeated"
BASE = ("A", "B", "E", "alpha", "beta")
LEAST_REPEATED = 3  # rows with more than one pass
_ONE_PASS = 1.001  # passes up to which a row counts as one
_BEYOND = 1.1  # times U_N from which a row speaks of R_N
_UNSEEN = 10.0  # times the most passes, an R_D that they hardly show
_NOTHING, _ENDLESS = 1e-3, 1e6  # R_D and R_N at which more of the same counts for nothing, and in full
_R_STARTS = (1.0, 5.0, 20.0, 100.0)
_BASE_STARTS = 45  # of the 4,500 starts for the first guess of the base every so many
_FEW_PASSES = 4.0  # below, the gain of repeated tokens is within 7% of that of new ones
_NAMES = ("A", "alpha", "B", "beta", "E", "R_D", "R_N")


def effective_tokens(tokens: npt.ArrayLike, unique_tokens: npt.ArrayLike, R_D: npt.ArrayLike) -> np.ndarray:
    """D', the tokens of one pass that are worth as much as `tokens` on `unique_tokens` distinct ones; they broadcast.
    R_D: passes after the first until a further one is worth 1/e of the first."""
    d, r = np.asarray(tokens, dtype=float), np.asarray(R_D, dtype=float)
    unique = np.minimum(np.asarray(unique_tokens, dtype=float), d)
    return np.asarray(unique * (1 - r * np.expm1(-(d / unique - 1) / r)))


def effective_params(params: npt.ArrayLike, best_params: npt.ArrayLike, R_N: npt.ArrayLike) -> np.ndarray:
    """N' of `params`, where `best_params` is the best size for the unique tokens; as `effective_tokens`."""
    return effective_tokens(params, best_params, R_N)


def best_params(unique_tokens: npt.ArrayLike, base: pub.Parametric) -> np.ndarray:
    """U_N = G (G U_D)^(beta/alpha): the size whose best number of tokens, in one pass, is `unique_tokens`."""
    return np.asarray(base.G * (base.G * np.asarray(unique_tokens, dtype=float)) ** (base.beta / base.alpha))


def predict(
    law: pub.Repeated, params: npt.ArrayLike, tokens: npt.ArrayLike, unique_tokens: npt.ArrayLike
) -> np.ndarray:
    """Loss of `params` parameters after `tokens` tokens, of which `unique_tokens` are distinct."""
    unique = np.minimum(np.asarray(unique_tokens, dtype=float), np.asarray(tokens, dtype=float))
    size = effective_params(params, best_params(unique, law.base), law.R_N)
    return law.base.loss(size, effective_tokens(tokens, unique, law.R_D))


def allocate(law: pub.Repeated, flops: float, unique_tokens: float) -> tuple[float, float, float]:
    """(params, tokens, loss) of least loss at C = 6 N D = `flops` with `unique_tokens` distinct tokens to draw on.

    Where they suffice for the budget this is the base's optimum in one pass. Where not, the size is smaller than that
    and the passes more if R_N < R_D, as published: parameters lose their worth before tokens do.
    """
    from scipy.optimize import minimize_scalar

    def loss(ln_n: np.ndarray) -> np.ndarray:
        n = np.exp(ln_n)
        return predict(law, n, flops / (6 * n), unique_tokens)

    middle = np.log(float(law.base.params_opt(flops)))
    grid = middle + np.linspace(-15, 15, 601)
    place = int(np.argmin(loss(grid)))
    found = minimize_scalar(
        lambda x: float(loss(np.asarray(x))), bounds=(grid[place] - 0.05, grid[place] + 0.05), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    params = float(np.exp(found.x))
    return params, flops / (6 * params), float(found.fun)


def law_of(values: dict[str, float], base: pub.Parametric | None = None, source: str = "fitted") -> pub.Repeated:
    """The law from the constants of a fit (`Outcome.estimates`' values), for `predict` and `allocate`; base as it was
    given to `fit`. Without an R_N in the fit, parameters count in full."""
    own = base or pub.Parametric(**{name: values[name] for name in BASE}, source=source)
    return pub.Repeated(own, values["R_D"], values.get("R_N", _ENDLESS), source)


def fit(
    params: np.ndarray,
    tokens: np.ndarray,
    unique_tokens: np.ndarray,
    loss: np.ndarray,
    *,
    base: pub.Parametric | None = None,
    weights: np.ndarray | None = None,
    run: Sequence[object] | np.ndarray | None = None,
    kind: engine.Loss = "huber",
    delta: float = parametric.DELTA,
    bootstrap: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> Outcome:
    """Fit R_D and R_N, with A, B, E, alpha and beta given as `base` (the paper's way) or, without it, all at once.

    params, tokens, unique_tokens: N, D and the distinct tokens, [n] (a row with fewer tokens than distinct ones has
    used only those). loss: [n], nats per token. The joint fit asks for nine rows of three sizes at a single pass, which
    determine the base; without them give `base`. R_N is fitted where three or more rows lie 10% beyond the best size
    for their unique tokens; else parameters count in full and a warning says so. Loss function as for `parametric.fit`,
    on which this law builds: the summed Huber loss of the residuals of ln L. weights, run, bootstrap: as `kaplan.fit`.

    Raises InputError for values that are not positive, a table in which nothing repeats, fewer than three rows that do,
    or too few single passes for the joint fit.
    """
    if base is not None and not all(0 < getattr(base, name) < np.inf for name in BASE):
        raise InputError(f"{LAW}: the constants A, B, E, alpha and beta of the base must be positive numbers")
    given = {"params": params, "tokens": tokens, "unique_tokens": unique_tokens}
    columns, y, w, labels = resample.points(LAW, given, loss, weights, run, least_points=LEAST_REPEATED, least={})
    columns["unique_tokens"] = np.minimum(columns["unique_tokens"], columns["tokens"])
    data = tuple(np.log(v) for v in columns.values())
    columns["passes"] = columns["tokens"] / columns["unique_tokens"]
    warnings = Warnings()
    form = _choose(columns, y, w, base, warnings)
    curve = form.curve()

    def solve(weights: np.ndarray, starts: np.ndarray, kind: engine.Loss = kind) -> engine.Fit:
        return engine.solve_curve(
            curve, data, np.log(y), starts, weights=weights, loss=kind, delta=delta, device=device
        )

    # The kinks of the robust losses make the way from afar long; squared residuals find the valleys.
    first = solve(w[None], form.starts(), "squared")
    starts = resample.distinct(first.optima[0], first.optima_objective[0])
    task = resample.Task(
        law=LAW,
        columns=columns,
        loss=y,
        weights=w,
        run=labels,
        solve=solve,
        starts=starts,
        constants=form.constants,
        ln_fitted=lambda theta: np.log(predict(_law(form.full(theta)), *(np.exp(x) for x in data))),
        least={"passes": 2} if base is not None else {"passes": 2, "params": parametric.LEAST_SIZES},
        squared=kind == "squared",
    )
    found = resample.fit(task, bootstrap=bootstrap, seed=seed, device=device)
    for item in warnings:
        found.warnings.add(**item)
    r_d = found.estimates["R_D"].value
    if r_d > _UNSEEN * columns["passes"].max():
        found.warnings.add(LAW, "no_decay", "repeated tokens show no loss of worth; R_D is a lower bound at best")
    elif r_d <= _NOTHING:
        found.warnings.add(LAW, "no_worth", "repeated tokens show no worth at all; check D and the unique tokens")
    return found


def _choose(
    columns: dict[str, np.ndarray],
    loss: np.ndarray,
    weights: np.ndarray,
    base: pub.Parametric | None,
    warnings: Warnings,
) -> _Form:
    """What the table determines, with a first guess of the rest. Raises InputError where that is not R_D."""
    params, passes = columns["params"], columns["passes"]
    repeated = int((passes > _ONE_PASS).sum())
    if repeated < LEAST_REPEATED:
        raise InputError(
            f"{LAW}: {repeated} rows pass over their data more than once (at most {passes.max():.3g} times); give at "
            f"least {LEAST_REPEATED}, or fit the law 'parametric', which is meant for one pass"
        )
    if base is None:
        once = passes <= _ONE_PASS
        sizes = len(np.unique(params[once]))
        if once.sum() < parametric.LEAST_POINTS or sizes < parametric.LEAST_SIZES:
            raise InputError(
                f"{LAW}: {once.sum()} rows of {sizes} sizes at a single pass do not determine A, B, E, alpha and beta; "
                f"give at least {parametric.LEAST_POINTS} of {parametric.LEAST_SIZES} sizes, or these constants"
            )
        begin = parametric.starts()[::_BASE_STARTS]
        n, d = params[once], columns["tokens"][once]
        guess = parametric.fit_parametric(n, d, loss[once], weights=weights[once], from_starts=begin, kind="squared")
        theta = guess.parameters[0]
    else:
        theta = np.array([np.log(base.A), base.alpha, np.log(base.B), base.beta, np.log(base.E)])
    free = [] if base is not None else [0, 1, 2, 3, 4]
    fixed = np.append(theta, [np.log(_R_STARTS[1]), np.log(_ENDLESS)])
    beyond = int((params > _BEYOND * best_params(columns["unique_tokens"], _law(fixed).base)).sum())
    if beyond < LEAST_REPEATED:
        warnings.add(
            LAW, "no_excess_parameters", f"{beyond} rows have more parameters than suit their unique tokens: R_N is "
            "not determined, and all parameters count in full"
        )  # fmt: skip
    if passes.max() < _FEW_PASSES:
        warnings.add(LAW, "few_passes", f"at most {passes.max():.1f} passes tell little of R_D; add runs of more")
    return _Form([*free, 5] if beyond < LEAST_REPEATED else [*free, 5, 6], fixed)


def _law(full: np.ndarray) -> pub.Repeated:
    """From all seven of theta."""
    ln_a, alpha, ln_b, beta, ln_e, ln_r_d, ln_r_n = (float(v) for v in full)
    base = pub.Parametric(np.exp(ln_a), np.exp(ln_b), np.exp(ln_e), alpha, beta, "fitted")
    r_d, r_n = np.clip(np.exp([ln_r_d, ln_r_n]), _NOTHING, _ENDLESS)
    return pub.Repeated(base, float(r_d), float(r_n), "fitted")


@dataclass(frozen=True)
class _Form:
    """theta [p] holds what is fitted; the rest of (ln A, alpha, ln B, beta, ln E, ln R_D, ln R_N) is `fixed` [7]."""

    free: list[int]
    fixed: np.ndarray

    def full(self, theta: np.ndarray) -> np.ndarray:
        """All seven, from theta [..., p]."""
        theta = np.asarray(theta)
        out = np.broadcast_to(self.fixed, (*theta.shape[:-1], len(self.fixed))).copy()
        out[..., self.free] = theta
        return out

    def constants(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """What is fitted, by name, from theta [..., p]."""
        values = np.moveaxis(self.full(theta), -1, 0)
        with np.errstate(all="ignore"):
            every = [v if i in (1, 3) else np.exp(v) for i, v in enumerate(values)]
            every[5:] = [np.clip(r, _NOTHING, _ENDLESS) for r in every[5:]]
        return {_NAMES[i]: every[i] for i in self.free}

    def starts(self) -> np.ndarray:
        """[s, p]: the first guess of the base with several R_D and R_N."""
        rows = [(*self.fixed[:5], d, n) for d in np.log(_R_STARTS) for n in np.log(_R_STARTS)]
        return np.unique(np.array(rows)[:, self.free], axis=0)

    def curve(self) -> Callable[..., torch.Tensor]:
        """ln L for `engine.solve_curve`, of theta, ln N, ln D and ln U_D."""
        fixed, place = self.fixed.tolist(), {index: k for k, index in enumerate(self.free)}

        def ln_loss(theta: torch.Tensor, ln_n: torch.Tensor, ln_d: torch.Tensor, ln_u: torch.Tensor) -> torch.Tensor:
            import torch

            every = [theta[place[i]] if i in place else theta.new_tensor(value) for i, value in enumerate(fixed)]
            ln_a, alpha, ln_b, beta, ln_e, ln_r_d, ln_r_n = every
            ln_g = (torch.log(alpha) + ln_a - torch.log(beta) - ln_b) / (alpha + beta)
            ln_best = torch.minimum(ln_g + beta / alpha * (ln_g + ln_u), ln_n)
            terms = [
                ln_a - alpha * (ln_best + _ln_gain(ln_n - ln_best, ln_r_n)),
                ln_b - beta * (ln_u + _ln_gain(ln_d - ln_u, ln_r_d)),
                ln_e.expand_as(ln_n),
            ]
            return torch.logsumexp(torch.stack(terms), dim=0)

        return ln_loss


def _ln_gain(ln_multiple: torch.Tensor, ln_r: torch.Tensor) -> torch.Tensor:
    """ln of the effective over the unique amount, at `ln_multiple` of the whole over the unique."""
    import torch

    r = torch.exp(ln_r).clamp(_NOTHING, _ENDLESS)
    return torch.log1p(-r * torch.expm1(-torch.expm1(ln_multiple) / r))

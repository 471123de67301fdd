"""What the few sizes of a sweep do to its optimal sizes, apart from noise: the bias of the grid.

The sweep is made again without noise from a smooth law L(N, D) = E + A/N^alpha + B/D^beta fitted to its own curves, and
the frontier and isoflop procedures are run on it. What they find differs from that law's own optimum over all sizes at
the same compute by the bias, and the intervals are moved by it; the values stay what the procedures found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import envelope as env
from analysis import parametric
from analysis.chain.frontier import derive_frontier
from analysis.chain.isoflop import derive_isoflop, derive_isoflop_decayed
from analysis.chain.results import Frontier, Isoflop, exponent_name
from analysis.outcome import Estimate, Warnings, holding
from analysis.power_law import PowerLaw
from analysis.tables.runs import with_losses
from analysis.tables.sizes import Size, size_curves
from analysis.uncertainty.bootstrap import Samples
from analysis.uncertainty.dense import dense_optimum
from sweep.schema import InputError

_POINTS = 24  # of each size's curve that the smooth law is fitted to


@dataclass(frozen=True)
class _World:
    """The noise-free sweep: its law and its runs."""

    theta: np.ndarray
    samples: Samples

    def loss(self, ln_n: np.ndarray | float, ln_tokens: np.ndarray) -> np.ndarray:
        """ln L of the law."""
        return _ln_loss(self.theta, ln_n, ln_tokens)


def without_grid_bias(
    samples: Samples,
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
    frontier: Frontier | None,
    isoflop: Isoflop | None,
) -> tuple[Frontier | None, Isoflop | None]:
    """Both sections with their intervals and draws moved by the bias of the grid, which every estimate then states.
    They are left as they are where the noise-free sweep does not support them."""
    if frontier is None and isoflop is None:
        return frontier, isoflop
    world = _make_world(samples, sizes)
    if frontier is not None and frontier.fits:
        frontier = _try_frontier(frontier, world, sizes, batch, law, measured)
    if isoflop is not None and isoflop.fit is not None and (isoflop.kind == "decayed") == sizes[0].decayed:
        isoflop = _try_isoflop(isoflop, world, sizes)
    return frontier, isoflop


def _make_world(samples: Samples, sizes: Sequence[Size]) -> _World:
    ln_n, ln_d, ln_l = [], [], []
    for size in sizes:
        values = size_curves(samples, size)[0][0]
        known = np.flatnonzero(np.isfinite(values))
        rows = known[np.unique(np.linspace(0, len(known) - 1, _POINTS).astype(int))] if len(known) else known
        ln_n.append(np.full(len(rows), np.log(size.params)))
        ln_d.append(size.x[rows])
        ln_l.append(values[rows])
    n, d, y = (np.concatenate(parts) for parts in (ln_n, ln_d, ln_l))
    theta = parametric.fit_parametric(np.exp(n), np.exp(d), np.exp(y), from_starts=_starts(n, d, y), kind="squared")
    best = theta.parameters[0]
    losses = [_ln_loss(best, np.log(run.params), run.ln_tokens) for run in samples.runs]
    return _World(best, Samples(with_losses(samples.runs, losses)))


def _sizes(sizes: Sequence[Size]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s.params for s in sizes]), np.array([s.flops_per_token for s in sizes])


def _starts(n: np.ndarray, d: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(ln A, alpha, ln B, beta, ln E): a third of the loss in each term, several exponents."""
    third = y.mean() - np.log(3)
    pairs = [(a, b) for a in (0.05, 0.3, 0.6) for b in (0.1, 0.3, 0.6)]
    return np.array([(third + a * n.mean(), a, third + b * d.mean(), b, third) for a, b in pairs])


def _ln_loss(theta: np.ndarray, ln_n: np.ndarray | float, ln_d: np.ndarray) -> np.ndarray:
    ln_a, alpha, ln_b, beta, ln_e = theta
    return np.logaddexp(np.logaddexp(ln_a - alpha * ln_n, ln_b - beta * ln_d), ln_e)


def _try_frontier(
    found: Frontier,
    world: _World,
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
) -> Frontier:
    own = None if law is None else law[:1]
    try:
        clean = derive_frontier(world.samples, sizes, batch, own, measured, Warnings())
    except InputError:
        return found
    fits, draws = dict(found.fits), dict(found.draws)
    for kind in found.fits.keys() & clean.fits.keys():
        rows = clean.optima[(clean.optima["kind"] == kind) & (clean.optima["edge"] == "interior")]
        at = np.log(rows["flops"].to_numpy(dtype=float))
        pair = None if kind == "raw" or law is None else (float(law[0, 0]), float(law[0, 1]))
        best = dense_optimum(world.loss, *_sizes(sizes), batch, pair, at)
        truth = env.fit_lines(at, env.quantities(at, best.ln_n, best.ln_k, best.ln_l, batch, pair))
        fits[kind], draws[kind] = {}, dict(found.draws.get(kind, {}))
        for name, fit in found.fits[kind].items():
            bias = (
                float(np.log(clean.fits[kind][name].coefficient.value)) - truth[name][0],
                clean.fits[kind][name].exponent.value - truth[name][1],
            )
            fits[kind][name] = PowerLaw(_scaled(fit.coefficient, bias[0]), _moved(fit.exponent, bias[1]))
            _move_draws(draws[kind], {exponent_name(name): bias[1]}, {f"{name}_coefficient": bias[0]})
    shares = found.shares.copy()
    if len(shares):
        exponents = [fits["adjusted"][name].exponent for name in shares["quantity"]]
        shares["low"], shares["high"] = [e.low for e in exponents], [e.high for e in exponents]
    return replace(found, fits=fits, draws=draws, shares=shares)


def _try_isoflop(found: Isoflop, world: _World, sizes: Sequence[Size]) -> Isoflop:
    assert found.fit is not None
    quiet = Warnings()
    try:
        decayed = found.kind == "decayed"
        clean = derive_isoflop_decayed(world.samples, quiet) if decayed else derive_isoflop(world.samples, sizes, quiet)
    except InputError:
        return found
    if clean.fit is None:
        return found
    used = clean.optima[clean.optima["used"]]
    at = np.log(used["budget"].to_numpy(dtype=float))
    best = dense_optimum(world.loss, *_sizes(sizes), None, None, at)
    moves, scales = {}, {}
    for name, y in (("N", best.ln_n), ("D", at - best.ln_k), ("L", best.ln_l)):
        exponent = exponent_name(name)
        intercept, slope = env.fit_lines(at, {name: y})[name]
        moves[exponent] = clean.fit[exponent].value - slope
        scales[f"{name}_coefficient"] = float(np.log(clean.fit[f"{name}_coefficient"].value)) - intercept
    fit = {
        name: _moved(e, moves[name]) if name in moves else _scaled(e, scales[name]) if name in scales else e
        for name, e in found.fit.items()
    }
    draws = dict(found.draws)
    _move_draws(draws, moves, scales)
    return replace(found, fit=fit, draws=draws)


def _moved(e: Estimate, bias: float) -> Estimate:
    """With the interval moved by the bias."""
    if e.low is None or e.high is None:
        return Estimate(e.value, bias=bias)
    low, high = holding(e.value, e.low - bias, e.high - bias)
    return Estimate(e.value, e.se, low, high, float(bias))


def _scaled(e: Estimate, bias: float) -> Estimate:
    """The same for a positive estimate, whose bias is that of its logarithm."""
    own, factor = e.value * float(np.expm1(bias)), float(np.exp(-bias))
    if e.low is None or e.high is None:
        return Estimate(e.value, bias=own)
    low, high = holding(e.value, e.low * factor, e.high * factor)
    return Estimate(e.value, e.se, low, high, own)


def _move_draws(draws: dict[str, np.ndarray], moves: Mapping[str, float], scales: Mapping[str, float]) -> None:
    for name in moves.keys() & draws.keys():
        draws[name] = draws[name] - moves[name]
    for name in scales.keys() & draws.keys():
        draws[name] = draws[name] * np.exp(-scales[name])

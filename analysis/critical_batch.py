"""Steps to a target loss against batch size, the critical batch B_crit(L), and its law (Kaplan et al. 2020, 5.1).

S(B, L) is the least number of steps to test loss L over the learning rates tried at that batch; of several seeds the
mean of ln S is taken. At each model and target, S = S_min + E_min/B is fitted on ln S, and B_crit = E_min/S_min tokens.
The law over losses is B_crit = B_star / L^(1/alpha_B) (Eq. 5.3), a weighted line in logarithms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import engine
from analysis.outcome import Estimate
from analysis.power_law import line
from analysis.tables.runs import Run
from sweep.schema import InputError

TARGETS = 16
LEAST_BATCHES = 3


@dataclass(frozen=True)
class Cell:
    """One model at one batch size: for each setting that was tried (rate, beta2, warm-up), the indices of its runs,
    one a seed."""

    group: str
    params: float
    batch: float
    settings: tuple[tuple[float, tuple[int, ...]], ...]  # (lr, runs)


@dataclass(frozen=True)
class Steps:
    """ln S of each cell at each target [cells, targets]; nan where it is not known. lr: the best rate there. seeds:
    how many were averaged. warmup: reached, but inside the warm-up or before the first evaluation. at_edge: the best
    rate is an end of its axis."""

    ln_steps: np.ndarray
    lr: np.ndarray
    seeds: np.ndarray
    warmup: np.ndarray
    at_edge: np.ndarray


@dataclass(frozen=True)
class Tradeoff:
    """Fits of S = S_min + E_min/B [problems]. inverse: [problems, 2, 2], the covariance of (ln S_min, ln E_min) for
    unit residual variance. variance: residual variance of ln S with `freedom` degrees of freedom. batches: fitted
    points. fitted: ln S at every batch [problems, batches]. bracketed: B_crit lies between the least and greatest
    batch."""

    ln_s: np.ndarray
    ln_e: np.ndarray
    inverse: np.ndarray
    variance: np.ndarray
    batches: np.ndarray
    fitted: np.ndarray
    bracketed: np.ndarray

    @property
    def ln_b(self) -> np.ndarray:
        """ln B_crit in tokens."""
        return self.ln_e - self.ln_s

    @property
    def ln_b_inverse(self) -> np.ndarray:
        """Variance of ln B_crit for unit residual variance."""
        v = self.inverse
        return v[..., 0, 0] + v[..., 1, 1] - 2 * v[..., 0, 1]


def make_cells(runs: Sequence[Run]) -> list[Cell]:
    """Cells of undecayed runs, by size and batch."""
    found: dict[tuple[float, str, float], dict[tuple[float, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, run in enumerate(runs):
        found[(run.params, run.group, run.batch)][run.setting].append(index)
    return [
        Cell(group, params, batch, tuple((s[0], tuple(v)) for s, v in sorted(settings.items())))
        for (params, group, batch), settings in sorted(found.items())
    ]


def choose_targets(runs: Sequence[Run], cells: Sequence[Cell], number: int = TARGETS) -> np.ndarray:
    """Losses equally spaced in logarithm, highest first, rounded to three decimals. A first grid goes from what two
    thirds of some model's batches (at least three) still have to reach after their warm-up to what three of them reach;
    the second, which is returned, covers the part of it where B_crit lies among the batches, and one step of the first
    grid on either side.

    Raises InputError where no model has three batch sizes, or no loss is passed by three of them.
    """
    tops, bottoms = [], []
    for _, members in by_group(cells):
        curves = [[runs[i].curve for _, rows in cells[m].settings for i in rows] for m in members]
        starts = sorted(max(np.interp(c.start, c.x, c.y) for c in cell) for cell in curves)
        ends = sorted(min(c.y[-1] for c in cell) for cell in curves)
        if len(members) >= LEAST_BATCHES:
            tops.append(starts[-max(LEAST_BATCHES, -(-2 * len(starts) // 3))])
            bottoms.append(ends[LEAST_BATCHES - 1] + 5e-4)
    if not tops:
        raise InputError(
            f"critical-batch: no model has {LEAST_BATCHES} or more batch sizes with an undecayed schedule; "
            "add batch sizes"
        )
    if max(tops) <= min(bottoms):
        raise InputError("critical-batch: no loss is passed by three batch sizes of one model; train longer")
    coarse = np.linspace(max(tops), min(bottoms), 2 * number)
    found = steps_to(runs, cells, np.exp(coarse)).ln_steps
    bracketed = np.zeros(len(coarse), dtype=bool)
    for _, members in by_group(cells):
        if len(members) >= LEAST_BATCHES:
            batches = np.array([cells[m].batch for m in members])
            bracketed |= fit_tradeoffs(batches, found[members].T).bracketed
    inside = np.flatnonzero(bracketed) if bracketed.any() else np.arange(len(coarse))
    first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, len(coarse) - 1)
    return np.unique(np.round(np.exp(np.linspace(coarse[last], coarse[first], number)), 3))[::-1]


def by_group(cells: Sequence[Cell]) -> list[tuple[str, list[int]]]:
    """Indices of the cells of each group, in the cells' order."""
    return [(g, [i for i, c in enumerate(cells) if c.group == g]) for g in dict.fromkeys(c.group for c in cells)]


def steps_to(runs: Sequence[Run], cells: Sequence[Cell], targets: np.ndarray) -> Steps:
    """S(B, L) of every cell. A setting counts as having reached a target when its seeds did on average and none of them
    went farther without; nothing is extrapolated."""
    shape = (len(cells), len(targets))
    ln_steps, lr = np.full(shape, np.nan), np.full(shape, np.nan)
    seeds, warmup, at_edge = np.zeros(shape, dtype=int), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    ln_targets = np.log(targets)
    crossed = np.array([run.curve.ln_tokens(ln_targets) for run in runs])
    ends = np.array([run.curve.end for run in runs])
    starts = np.array([run.curve.start for run in runs])
    for c, cell in enumerate(cells):
        rates = np.array([rate for rate, _ in cell.settings])
        tokens = np.full((len(rates), len(targets)), np.nan)
        counts = np.zeros(tokens.shape, dtype=int)
        for s, (_, members) in enumerate(cell.settings):
            rows = list(members)
            reached = ~np.isnan(crossed[rows])
            counts[s] = reached.sum(axis=0)
            mean = np.where(reached, crossed[rows], 0.0).sum(axis=0) / np.maximum(counts[s], 1)
            failed = (~reached & (ends[rows][:, None] >= mean)).any(axis=0)
            tokens[s] = np.where((counts[s] > 0) & ~failed, mean, np.nan)
        best = np.argmin(np.where(np.isnan(tokens), np.inf, tokens), axis=0)
        columns = np.arange(len(targets))
        chosen = tokens[best, columns]
        first = np.array([max(starts[list(members)]) for _, members in cell.settings])[best]
        known = ~np.isnan(chosen)
        warmup[c] = known & (chosen < first)
        ln_steps[c] = np.where(known & ~warmup[c], chosen - np.log(cell.batch), np.nan)
        lr[c] = np.where(known, rates[best], np.nan)
        seeds[c] = np.where(known, counts[best, columns], 0)
        if len(np.unique(rates)) > 1:
            at_edge[c] = known & ((rates[best] == rates.min()) | (rates[best] == rates.max()))
    return Steps(ln_steps, lr, seeds, warmup, at_edge)


def fit_tradeoffs(batches: np.ndarray, ln_steps: np.ndarray) -> Tradeoff:
    """Fit S = S_min + E_min/B on ln S, both positive, for many problems at once.

    batches: [n] tokens. ln_steps: [problems, n], nan where a batch did not reach the target. Problems with fewer than
    three batches get nan.
    """
    ln_batches = np.log(batches)
    known = np.isfinite(ln_steps)
    count = known.sum(axis=1)
    enough = count >= LEAST_BATCHES
    y = np.where(known, ln_steps, 0.0)
    w = (known & enough[:, None]).astype(float)
    design = np.zeros((2, len(batches), 2))
    design[0, :, 0] = design[1, :, 1] = 1
    offset = np.stack([np.zeros(len(batches)), -ln_batches])
    # Start from several B_crit across the batches and a little beyond, each with its best S_min.
    guesses = np.linspace(ln_batches.min() - 2, ln_batches.max() + 2, 6)
    rest = y[:, None] - np.log1p(np.exp(guesses[:, None] - ln_batches))
    ln_s = (w[:, None] * rest).sum(axis=2) / np.maximum(count, 1)[:, None]
    starts = np.stack([ln_s, ln_s + guesses], axis=2)
    best = engine.solve(design, y, starts, offset=offset, weights=w)
    ln_s, ln_e = np.where(enough, best.parameters.T, np.nan)
    freedom = np.maximum(count - 2, 1)
    ln_b = ln_e - ln_s
    least = np.where(known, ln_batches, np.inf).min(axis=1)
    greatest = np.where(known, ln_batches, -np.inf).max(axis=1)
    inverse = np.full((len(y), 2, 2), np.nan)
    inverse[enough] = np.linalg.pinv(best.gram[enough], hermitian=True)
    return Tradeoff(
        ln_s,
        ln_e,
        inverse,
        np.where(enough, best.objective / freedom, np.nan),
        count,
        np.where(enough[:, None], np.logaddexp(best.parameters[:, :1], best.parameters[:, 1:] - ln_batches), np.nan),
        enough & (ln_b >= least) & (ln_b <= greatest),
    )


def tuning_scatter(runs: Sequence[Run], sigma: float) -> float:
    """Standard deviation of ln S between the batches of a model beyond what seed noise `sigma` of ln(loss) explains:
    from the residuals of the trade-off fits, pooled over models and over the targets that bracket their B_crit. 0
    where there is no such fit. It holds rates that are better tuned at some batches than at others, and the
    trade-off's own misfit.
    """
    cells = make_cells(runs)
    try:
        targets = choose_targets(runs, cells)
    except InputError:
        return 0.0
    found = steps_to(runs, cells, targets)
    total, freedom = 0.0, 0
    for _, members in by_group(cells):
        if len(members) < LEAST_BATCHES:
            continue
        ln_steps = found.ln_steps[members].T
        fits = fit_tradeoffs(np.array([cells[m].batch for m in members]), ln_steps)
        seeds = seed_variance(runs, [cells[m] for m in members], ln_steps, found.seeds[members], sigma)
        for t in np.flatnonzero(fits.bracketed):
            own = int(fits.batches[t]) - 2
            total += own * (fits.variance[t] - float(seeds[t]))
            freedom += own
    return float(np.sqrt(max(total / freedom, 0.0))) if freedom else 0.0


def seed_variance(
    runs: Sequence[Run], cells: Sequence[Cell], ln_steps: np.ndarray, seeds: np.ndarray, sigma: float
) -> np.ndarray:
    """Variance of ln S that noise `sigma` of ln(loss) gives through the slope of the curves: the mean over the cells
    that reached each target [targets]; nan where none did. ln_steps: [targets, cells]. seeds: [cells, targets]."""
    total, count = np.zeros(len(ln_steps)), np.zeros(len(ln_steps))
    for k, cell in enumerate(cells):
        slope = runs[cell.settings[0][1][0]].curve.slope(ln_steps[:, k] + np.log(cell.batch))
        own = sigma**2 / np.minimum(slope, -1e-3) ** 2 / np.maximum(seeds[k], 1)
        total, count = total + np.nan_to_num(own), count + np.isfinite(own)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def fit_law(ln_loss: np.ndarray, ln_b: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(intercept, slope) of ln B_crit against ln L: B_star = exp(intercept), alpha_B = -1/slope. nan for fewer than
    three points at different losses."""
    good = np.isfinite(ln_b) & (weights > 0)
    if len(np.unique(ln_loss[good])) < 3:
        return np.nan, np.nan
    return line(ln_loss[good], ln_b[good], weights[good])


def critical_batch(batch_tokens: np.ndarray, steps: np.ndarray) -> dict[str, Estimate]:
    """S_min (steps), E_min and B_crit (tokens) of one model at one target loss, with least-squares standard errors.

    Raises InputError for values that are not positive or fewer than three batch sizes.
    """
    batch, s = np.asarray(batch_tokens, dtype=float), np.asarray(steps, dtype=float)
    if not (np.isfinite(batch).all() and np.isfinite(s).all() and (batch > 0).all() and (s > 0).all()):
        raise InputError("critical-batch: batch_tokens and steps must be positive numbers; remove the other rows")
    if len(np.unique(batch)) < LEAST_BATCHES:
        raise InputError(
            f"critical-batch: {len(np.unique(batch))} batch sizes do not determine S_min, E_min and their error; "
            f"give at least {LEAST_BATCHES}"
        )
    found = fit_tradeoffs(batch, np.log(s)[None])
    variance = found.variance[0]
    values = {"S_min": found.ln_s[0], "E_min": found.ln_e[0], "B_crit": found.ln_b[0]}
    inverse = {"S_min": found.inverse[0, 0, 0], "E_min": found.inverse[0, 1, 1], "B_crit": found.ln_b_inverse[0]}
    return {
        name: Estimate(float(np.exp(ln)), float(np.exp(ln) * np.sqrt(inverse[name] * variance)))
        for name, ln in values.items()
    }

"""From runs to S(B, L): the steps that each batch size needs to each target loss, over what was tuned and the seeds.

S(B, L) is the least number of steps to test loss L over the learning rates tried at that batch; of several seeds the
mean of ln S is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.critical_batch.tradeoff import LEAST_BATCHES, fit_tradeoffs
from analysis.tables.runs import Run
from analysis.uncertainty.bootstrap import Samples
from sweep.schema import InputError

TARGETS = 16


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
        starts = sorted(min(np.interp(c.start, c.x, c.y) for c in cell) for cell in curves)
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
    return steps_in(Samples(runs), cells, targets)[0]


def steps_in(samples: Samples, cells: Sequence[Cell], targets: np.ndarray) -> tuple[Steps, np.ndarray]:
    """`steps_to` of the first sample, and ln S in every one [samples, cells, targets]."""
    shape = (len(cells), len(targets))
    ln_steps = np.full((len(samples), *shape), np.nan)
    lr, seeds = np.full(shape, np.nan), np.zeros(shape, dtype=int)
    warmup, at_edge = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for c, cell in enumerate(cells):
        rates = np.array([rate for rate, _ in cell.settings])
        read = [_setting_tokens(samples, members, np.log(targets)) for _, members in cell.settings]
        tokens = np.array([values for values, _ in read])  # [settings, samples, targets]
        best = np.argmin(np.where(np.isnan(tokens), np.inf, tokens), axis=0)
        chosen = np.take_along_axis(tokens, best[None], axis=0)[0]
        first = np.array([max(samples.runs[i].curve.start for i in members) for _, members in cell.settings])[best]
        known = ~np.isnan(chosen)
        early = known & (chosen < first)
        ln_steps[:, c] = np.where(known & ~early, chosen - np.log(cell.batch), np.nan)
        warmup[c] = early[0]
        lr[c] = np.where(known[0], rates[best[0]], np.nan)
        counts = np.array([count for _, count in read])
        seeds[c] = np.where(known[0], counts[best[0], np.arange(len(targets))], 0)
        if len(np.unique(rates)) > 1:
            at_edge[c] = known[0] & ((rates[best[0]] == rates.min()) | (rates[best[0]] == rates.max()))
    return Steps(ln_steps[0], lr, seeds, warmup, at_edge), ln_steps


def _setting_tokens(samples: Samples, members: Sequence[int], ln_targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln(tokens) of one setting to each target [samples, targets], and in the first sample of how many seeds
    [targets]."""
    crossed = np.array([samples.curves(i).ln_tokens(ln_targets) for i in members])  # [seeds, samples, targets]
    ends = np.array([samples.runs[i].curve.end for i in members])[:, None, None]
    reached = ~np.isnan(crossed)
    counts = reached.sum(axis=0)
    mean = np.where(reached, crossed, 0.0).sum(axis=0) / np.maximum(counts, 1)
    failed = (~reached & (ends >= mean)).any(axis=0)
    return np.where((counts > 0) & ~failed, mean, np.nan), counts[0]


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
        lowest = min((runs[seeds[0]].curve for _, seeds in cell.settings), key=lambda curve: float(curve.y[-1]))
        slope = lowest.slope(ln_steps[:, k] + np.log(cell.batch))
        own = sigma**2 / np.minimum(slope, -1e-3) ** 2 / np.maximum(seeds[k], 1)
        total, count = total + np.nan_to_num(own), count + np.isfinite(own)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

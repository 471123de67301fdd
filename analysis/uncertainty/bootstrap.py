"""Intervals: simulated sweeps with the estimated noise, the whole chain of laws refitted on each.

A replicate takes every run's smoothed curve as the truth and adds to ln(loss)
- seed noise: Gaussian, with the standard deviation between seeds and its correlation along the run. Where that
deviation
  was itself estimated from few repeats, it is redrawn for each replicate (scaled inverse chi-square), so that intervals
  are not too narrow for knowing it badly;
- tuning scatter: all runs of one size and batch need a common factor more or fewer tokens, as when a learning-rate rule
  suits some cells better than others (`analysis.critical_batch.tuning_scatter` says how much).
Without the second, intervals covered the planted exponents in only half of the sweeps simulated with 12% scatter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, overload

import numpy as np

from analysis.outcome import LEVEL, Estimate
from analysis.tables.curves import Curves
from analysis.tables.runs import Run, SeedNoise

_HELD = 2**28  # bytes of simulated curves that are kept


def estimate(samples: np.ndarray, level: float = LEVEL) -> Estimate:
    """From samples [1 + replicates], the first of which is the point estimate. Replicates that failed (nan) are left
    out; when they are more than half, no interval is given."""
    value, replicates = float(samples[0]), samples[1:]
    good = replicates[np.isfinite(replicates)]
    if len(good) < 2 or len(good) < len(replicates) / 2:
        return Estimate(value)
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2], method="weibull")
    return Estimate(value, float(good.std(ddof=1)), float(low), float(high))


def reflected(samples: np.ndarray) -> np.ndarray:
    """Samples [1 + replicates, ...] with the replicates reflected about the estimate: their percentiles are the basic
    bootstrap's interval (Davison & Hinkley 1997, section 5.2), which allows for the estimator's bias where plain
    percentiles would double it."""
    return np.concatenate([samples[:1], 2 * samples[:1] - samples[1:]])


def band(samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise interval [n], [n] of samples [1 + replicates, n]; nan where fewer than half of the replicates hold."""
    replicates = samples[1:]
    count = np.isfinite(replicates).sum(axis=0)
    known = (count >= 2) & (count >= len(replicates) / 2)
    out = np.full((2, samples.shape[1]), np.nan)
    ends = [(1 - level) / 2, (1 + level) / 2]
    if known.any():
        out[:, known] = np.nanquantile(replicates[:, known], ends, axis=0, method="weibull")
    return out[0], out[1]


def correlated_noise(
    ln_tokens: np.ndarray, correlation: float, rng: np.random.Generator, number: int = 1
) -> np.ndarray:
    """Unit Gaussian noise [number, n] at increasing `ln_tokens`, correlated as exp(-distance / correlation)."""
    # Each point holds the share exp(-distance / correlation) of the point before it and new noise for the rest.
    decay = np.exp(-np.diff(ln_tokens, prepend=-np.inf) / correlation)
    distance = np.tril(ln_tokens[:, None] - ln_tokens)
    mixing = np.tril(np.exp(-distance / correlation)) * np.sqrt(1 - decay**2)
    return rng.standard_normal((number, len(ln_tokens))) @ mixing.T


class Samples(Sequence[Sequence[Run]]):
    """Runs and simulated versions of them: sample 0 holds the runs as they are, the others one replicate each.

    Laws read all versions of one run at a time (`curves`, `ln_loss`). These are simulated when they are asked for, the
    same each time, and the ones longest unused are forgotten, so that memory does not grow with the sweep. `samples[k]`
    is one replicate as a list of runs; that suits small sweeps only.
    """

    def __init__(self, runs: Sequence[Run], replicates: int = 0, draw: Callable[[int], np.ndarray] | None = None):
        """draw: index of a run -> ln(loss) [replicates, n] at its `ln_tokens` [n], the same at each call."""
        self.runs = runs
        self._replicates = replicates
        self._draw = draw
        self._known: OrderedDict[int, Curves] = OrderedDict()
        self.read: dict[tuple[object, ...], Any] = {}  # what was read of all versions, by whoever keeps it

    def __len__(self) -> int:
        return 1 + self._replicates

    @overload
    def __getitem__(self, sample: int) -> Sequence[Run]: ...
    @overload
    def __getitem__(self, sample: slice) -> Sequence[Sequence[Run]]: ...
    def __getitem__(self, sample: int | slice) -> Sequence[Run] | Sequence[Sequence[Run]]:
        if isinstance(sample, slice):
            return [self[k] for k in range(*sample.indices(len(self)))]
        if not -len(self) <= sample < len(self):
            raise IndexError(sample)
        if sample % len(self) == 0:
            return self.runs
        k = sample % len(self)
        return [replace(r, ln_loss=self.ln_loss(i)[k], curve=self.curves(i)[k]) for i, r in enumerate(self.runs)]

    def of(self, runs: Sequence[Run]) -> Samples:
        """The same losses for the same runs with other N and C; what is simulated is shared."""
        other = copy(self)
        other.runs = runs
        return other

    def ln_loss(self, run: int) -> np.ndarray:
        """ln(loss) [samples, n] of a run by its index, not smoothed."""
        own = self.runs[run].ln_loss[None]
        return own if self._draw is None else np.concatenate([own, self._draw(run)])

    def last(self, run: int) -> np.ndarray:
        """ln(loss) [samples] of a run by its index at its last evaluation, not smoothed."""
        if ("last", run) not in self.read:
            self.read["last", run] = self.ln_loss(run)[:, -1].copy()
        return self.read["last", run]

    def curves(self, run: int) -> Curves:
        """The smoothed curve of a run by its index in every sample."""
        if run in self._known:
            self._known.move_to_end(run)
            return self._known[run]
        drawn = None if self._draw is None else self._draw(run)
        found = self._known[run] = self.runs[run].curves_with(drawn)
        while len(self._known) > max(1, _HELD // found.nbytes):
            self._known.popitem(last=False)
        return found


def simulate(
    runs: Sequence[Run], noise: SeedNoise, tuning: float, replicates: int, rng: np.random.Generator
) -> Samples:
    """The runs and `replicates` simulated versions of them. tuning: SD of ln(tokens) to a loss between cells (a cell is
    one size at one batch)."""
    sigma = np.full(replicates, noise.sigma)
    if noise.freedom >= 2:
        sigma = sigma * np.sqrt(noise.freedom / rng.chisquare(noise.freedom, replicates))
        # With two degrees of freedom the variance of these draws is infinite; a factor of four is doubt enough.
        sigma = np.minimum(sigma, 4 * noise.sigma)
    cells = {cell: tuning * rng.standard_normal(replicates) for cell in dict.fromkeys((r.group, r.batch) for r in runs)}
    seeds = np.random.SeedSequence(int(rng.integers(2**63))).spawn(len(runs))

    def draw(i: int) -> np.ndarray:
        run, own = runs[i], np.random.default_rng(seeds[i])
        shocks = correlated_noise(run.ln_tokens, noise.correlation, own, replicates) * sigma[:, None]
        return run.curve.extended(run.ln_tokens - cells[run.group, run.batch][:, None]) + shocks

    return Samples(runs, replicates, draw)

"""Measurements of S(B, L) in groups, their noise, and refits to data with that noise redrawn.

The targets of one group are read off the same runs, so the noise of one batch is correlated across them: it is taken as
exp(-|difference of ln L| / length), the length estimated from how residuals go together. Its variance is that of all
targets of the group together, and is itself redrawn (`analysis.uncertainty.redraw`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.critical_batch.tradeoff import LEAST_BATCHES, Tradeoff, fit_tradeoffs
from analysis.uncertainty import redraw


@dataclass(frozen=True)
class Group:
    """Measurements of one group and their fits. targets: ln L, highest first. batches: [slots], one slot for every
    repeat of a batch. rows: [targets, slots] where in the table it stands, -1 for none and for targets with fewer than
    three batches. ln_steps: [targets, slots], nan where there is no row."""

    name: object
    targets: np.ndarray
    batches: np.ndarray
    rows: np.ndarray
    ln_steps: np.ndarray
    fits: Tradeoff

    @property
    def fitted(self) -> np.ndarray:
        """Which targets have a fit."""
        return np.isfinite(self.fits.ln_s)

    @property
    def residuals(self) -> np.ndarray:
        """Of ln S [targets, slots]."""
        return self.ln_steps - self.fits.fitted


@dataclass(frozen=True)
class Noise:
    """Of ln S in one group: variance, its degrees of freedom, and the correlation between targets."""

    variance: float
    freedom: float
    correlation: np.ndarray


@dataclass(frozen=True)
class Samples:
    """The fits of one group to the data and to replicates, all arrays [1 + replicates, targets] with the data first.
    scale: [replicates] factors of the noise. law_variance: of ln B_crit, relative between groups."""

    ln_s: np.ndarray
    ln_e: np.ndarray
    bracketed: np.ndarray
    law_variance: np.ndarray
    converged: np.ndarray
    scale: np.ndarray

    @property
    def ln_b(self) -> np.ndarray:
        """ln B_crit in tokens."""
        return self.ln_e - self.ln_s


def collect(batch: np.ndarray, steps: np.ndarray, ln_l: np.ndarray, members: np.ndarray, name: object) -> Group:
    """The group of the rows `members` of a table: batch [n] tokens, steps [n], ln_l [n]."""
    targets = np.unique(ln_l[members])[::-1]
    repeat = pd.DataFrame({"l": ln_l[members], "b": batch[members]}).groupby(["l", "b"]).cumcount()
    slot_of = list(zip(batch[members], repeat, strict=True))
    slots = sorted(set(slot_of))
    index = {slot: i for i, slot in enumerate(slots)}
    rows = np.full((len(targets), len(slots)), -1)
    rows[np.searchsorted(-targets, -ln_l[members]), [index[slot] for slot in slot_of]] = members
    batches = np.array([b for b, _ in slots])
    distinct = np.array([len(np.unique(batches[row >= 0])) for row in rows])
    rows[distinct < LEAST_BATCHES] = -1
    ln_steps = np.where(rows >= 0, np.log(steps)[rows], np.nan)
    return Group(name, targets, batches, rows, ln_steps, fit_tradeoffs(batches, ln_steps))


def correlation_length(groups: Sequence[Group]) -> float:
    """In ln L, of the noise of one batch: the exponential nearest to the correlations of the residuals between all
    pairs of targets, each weighted by the squares behind it. 0 where there are no pairs or no residuals."""
    distance, found, weight = [], [], []
    for g in groups:
        both = np.isfinite(g.residuals).astype(float)
        r = np.where(both > 0, g.residuals, 0.0)
        squares = (r**2 @ both.T + both @ (r**2).T) / 2  # of the slots that both targets have
        i, j = np.triu_indices(len(r), 1)
        i, j = i[squares[i, j] > 0], j[squares[i, j] > 0]
        distance += list(np.abs(g.targets[i] - g.targets[j]))
        found += list((r @ r.T)[i, j] / squares[i, j])
        weight += list(squares[i, j])
    if not distance:
        return 0.0
    d, c, w = np.array(distance), np.array(found), np.array(weight)
    lengths = np.geomspace(d.min() / 10, d.max() * 30, 200)
    misfit = (w * (c - np.exp(-d / lengths[:, None])) ** 2).sum(axis=1)
    return float(lengths[np.argmin(misfit)])


def noise_of(g: Group, length: float) -> Noise:
    """Targets that go together add few degrees of freedom: their squares have the squared correlation, and the sum is
    given the chi-square with its mean and variance (Satterthwaite)."""
    distance = np.abs(g.targets[:, None] - g.targets)
    correlation = np.exp(-distance / length) if length > 0 else np.eye(len(g.targets))
    freedom = np.maximum(np.isfinite(g.residuals).sum(axis=1) - 2, 0)
    if not freedom.sum():
        return Noise(np.nan, np.nan, correlation)
    effective = freedom.sum() ** 2 / (np.minimum(freedom[:, None], freedom) * correlation**2).sum()
    return Noise(float(np.nansum(g.residuals**2) / freedom.sum()), float(effective), correlation)


def resample(g: Group, noise: Noise, count: int, rng: np.random.Generator) -> Samples:
    """The group's fits and those of `count` replicates, with the noise redrawn around the fitted trade-offs."""
    fits, scale = g.fits, np.ones(count)
    if count and np.isfinite(noise.freedom):
        scale = redraw.scales(noise.freedom, count, rng)
        values, vectors = np.linalg.eigh(noise.correlation)
        shocks = (vectors * np.sqrt(np.clip(values, 0, None))) @ rng.standard_normal((count, *g.ln_steps.shape))
        again = g.fits.fitted + np.sqrt(noise.variance) * scale[:, None, None] * shocks
        again = np.where(np.isfinite(g.ln_steps), again, np.nan)
        fits = fit_tradeoffs(g.batches, np.concatenate([g.ln_steps[None], again]).reshape(-1, len(g.batches)))

    def shaped(values: np.ndarray) -> np.ndarray:
        """[1 + count, targets]; the data alone, repeated, for a group without a fit."""
        return np.broadcast_to(values.reshape(-1, len(g.targets)), (1 + count, len(g.targets)))

    variance = noise.variance if noise.variance > 0 else 1.0  # an exact group: any weight will do
    return Samples(
        ln_s=shaped(fits.ln_s),
        ln_e=shaped(fits.ln_e),
        bracketed=shaped(fits.bracketed),
        law_variance=shaped(fits.ln_b_inverse * variance),
        converged=shaped(fits.converged),
        scale=scale,
    )

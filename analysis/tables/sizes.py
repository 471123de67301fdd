"""One loss curve a model size, for comparing sizes at equal compute.

Of the seeds the mean of ln L, of the learning rates the best at each point, at one batch size that the sizes share: a
size with many batch sizes would otherwise be favoured by its larger choice, for the least of many noisy curves lies
low.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.tables.runs import Run
from analysis.uncertainty.bootstrap import Samples

LEAST_SIZES = 4
_STEP = 0.03  # of a size's curve, in ln(tokens)
_DECADES = 2.0  # of tokens, up to its end, over which a size's curve is read
_SAME_END = 0.02  # in ln(tokens): horizons as far apart as whole updates of different batches leave them


@dataclass(frozen=True)
class Size:
    """One model size: for each setting (batch, rate, beta2, warm-up) the indices of its runs, which are seeds and where
    decayed horizons too, and the ln(tokens) at which it is read."""

    group: str
    params: float
    flops_per_token: float
    batch: float
    settings: tuple[tuple[int, ...], ...]
    x: np.ndarray
    decayed: bool

    @property
    def members(self) -> list[int]:
        """Indices of all its runs."""
        return [i for setting in self.settings for i in setting]


def choose_batch(runs: Sequence[Run]) -> float | None:
    """The batch size that the most sizes share (then the one run to the greatest compute); None where fewer than
    four sizes and fewer than all share one."""
    sizes: dict[float, set[float]] = defaultdict(set)
    reach: dict[float, float] = defaultdict(float)
    for run in runs:
        sizes[run.batch].add(run.params)
        reach[run.batch] = max(reach[run.batch], run.final_flops)
    if not sizes:
        return None
    best = max(sizes, key=lambda b: (len(sizes[b]), reach[b]))
    enough = len(sizes[best]) >= min(LEAST_SIZES, len({run.params for run in runs}))
    return best if enough else None


def make_sizes(runs: Sequence[Run], batch: float | None) -> list[Size]:
    """One `Size` a group, smallest first: its runs at `batch`; without a common batch, at its batch with the longest
    run. One-layer models are left out where four deeper sizes remain (Kaplan et al. 2020, App. D.7)."""
    deep = {run.params for run in runs if run.n_layer != 1}
    if len(deep) >= LEAST_SIZES:
        runs_in = [i for i, run in enumerate(runs) if run.n_layer != 1]
    else:
        runs_in = list(range(len(runs)))
    groups: dict[tuple[float, str], list[int]] = defaultdict(list)
    for i in runs_in:
        groups[(runs[i].params, runs[i].group)].append(i)
    sizes = []
    for (params, group), members in sorted(groups.items()):
        at = batch if batch is not None else max((runs[i] for i in members), key=lambda r: r.final_tokens).batch
        chosen = [i for i in members if runs[i].batch == at or runs[i].decayed]
        if chosen:
            sizes.append(_make_size(runs, group, params, at, chosen))
    return sizes


def _make_size(runs: Sequence[Run], group: str, params: float, batch: float, members: list[int]) -> Size:
    decayed, per_token = runs[members[0]].decayed, runs[members[0]].flops_per_token
    found: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for i in members:
        found[(runs[i].batch, *runs[i].setting)].append(i)
    if decayed:
        ends = sorted({float(runs[i].ln_tokens[-1]) for i in members})
        x = np.unique(np.concatenate([np.arange(ends[0], ends[-1], _STEP), ends]))
        return Size(group, params, per_token, batch, tuple(tuple(v) for _, v in sorted(found.items())), x, True)
    # Seeds of a shorter horizon would put a step into the mean where they end, so only the full-length ones count.
    longest = max(runs[i].curve.end for i in members)
    settings = []
    for _, seeds in sorted(found.items()):
        reach = max(runs[i].curve.end for i in seeds)
        settings.append(tuple(i for i in seeds if runs[i].curve.end >= reach - _SAME_END))
    start = max(min(runs[i].curve.start for i in members), longest - _DECADES * math.log(10))
    x = np.append(np.arange(start, longest, _STEP), longest)
    return Size(group, params, per_token, batch, tuple(settings), x, False)


def size_curve(runs: Sequence[Run], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """ln L at `size.x`, nan where no setting is known, and the index of the run it stands for."""
    values, index = size_curves(Samples(runs), size)
    return values[0], index


def size_curves(samples: Samples, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """ln L in every sample [samples, x], and the index of the run that the first sample's stands for [x]."""
    key = ("size", size.settings, size.x.tobytes())  # several laws read it, under several conventions
    if key not in samples.read:
        samples.read[key] = _decayed_curves(samples, size) if size.decayed else _open_curves(samples, size)
    values, index = samples.read[key]
    return values, index


def _open_curves(samples: Samples, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The least of the settings at each x, the mean of the seeds each."""
    lowest = np.full((len(samples), len(size.x)), np.inf)
    index = np.full(len(size.x), size.settings[0][0])
    for members in size.settings:
        curves = [samples.curves(i) for i in members]
        end = min(curve.end for curve in curves)
        x = np.minimum(size.x, np.where(size.x <= end + _SAME_END, end, size.x))
        mean = sum(curve.ln_loss(x) for curve in curves) / len(members)
        better = mean < lowest  # not where it is nan
        lowest = np.where(better, mean, lowest)
        index = np.where(better[0], members[0], index)
    return np.where(np.isfinite(lowest), lowest, np.nan), index


def _decayed_curves(samples: Samples, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Final losses of runs of several horizons, the best setting at each, joined by straight lines in logarithms."""
    knots, lowest, best = [], [], []
    for ends in _horizons(samples.runs, size):
        means = np.array([np.mean([samples.last(i) for i in seeds], axis=0) for seeds in ends])  # [settings, samples]
        seeds = ends[int(means[:, 0].argmin())]
        knots.append(float(samples.runs[seeds[0]].ln_tokens[-1]))
        lowest.append(means.min(axis=0))
        best.append(seeds[0])
    nearest = np.abs(size.x[:, None] - np.array(knots)).argmin(axis=1)
    return np.array([np.interp(size.x, knots, row) for row in np.transpose(lowest)]), np.array(best)[nearest]


def best_ends(runs: Sequence[Run], size: Size) -> list[int]:
    """Of each horizon of a decayed size, the seeds of the setting that ends lowest. The others are worse tuned, and no
    points of a law of N and D."""

    def end(seeds: list[int]) -> float:
        return float(np.mean([runs[i].ln_loss[-1] for i in seeds]))

    return [i for ends in _horizons(runs, size) for i in min(ends, key=end)]


def _horizons(runs: Sequence[Run], size: Size) -> list[list[list[int]]]:
    """Runs of a decayed size by their horizon, the shortest first, and there by their setting."""
    found: list[tuple[float, dict[int, list[int]]]] = []
    placed = sorted((float(runs[i].ln_tokens[-1]), k, i) for k, seeds in enumerate(size.settings) for i in seeds)
    for end, setting, i in placed:
        if not found or end > found[-1][0] + _SAME_END:
            found.append((end, defaultdict(list)))
        found[-1][1][setting].append(i)
    return [list(settings.values()) for _, settings in found]

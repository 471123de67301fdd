"""One training curve as a decreasing function: smoothing, and where it crosses a loss.

A running minimum would flatter noisy curves (small batches, high rates), so the test loss is smoothed by isotonic
regression in the logarithm of the loss over the logarithm of the tokens, the level stretches are contracted to their
centres, and a monotone cubic (PCHIP: Fritsch & Butland 1984) joins them. Nothing is extrapolated.

Thousands of curves are smoothed at once, as flat arrays in which one curve follows on the other: sweeps of ten thousand
runs, and intervals from hundreds of simulated sweeps, ask for millions of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FINE = 6  # points of the fine grid between two knots; linear interpolation between those
_REACH = 1.0  # in ln(tokens): stretch at the end whose mean slope continues a curve
_APART = 64.0  # more than ln(loss) spans
_EDGE = 1e-9  # slack of the ends in ln(tokens), so that a run's own last point counts as inside


@dataclass(frozen=True)
class Curve:
    """A smoothed curve. x: ln(tokens), increasing; y: ln(loss), not increasing; start: ln(tokens) where readings begin
    (the end of the warm-up, or the first evaluation)."""

    x: np.ndarray
    y: np.ndarray
    start: float

    @property
    def end(self) -> float:
        """ln(tokens) of the last evaluation."""
        return float(self.x[-1])

    def ln_loss(self, ln_tokens: np.ndarray) -> np.ndarray:
        """ln(loss) at `ln_tokens`; nan outside the readable range."""
        inside = (ln_tokens >= self.start - _EDGE) & (ln_tokens <= self.end + _EDGE)
        return np.where(inside, np.interp(ln_tokens, self.x, self.y), np.nan)

    def ln_tokens(self, ln_loss: np.ndarray) -> np.ndarray:
        """ln(tokens) at which the curve first reaches `ln_loss`: nan where it never gets there, -inf where it already
        was below at the first evaluation. The result may lie before `start`: a crossing inside the warm-up."""
        reached = np.interp(-ln_loss, -self.y, self.x)
        return np.where(ln_loss > self.y[0], -np.inf, np.where(ln_loss >= self.y[-1], reached, np.nan))

    def slope(self, ln_tokens: np.ndarray) -> np.ndarray:
        """d ln(loss) / d ln(tokens), as the mean over half of `_REACH` on either side, cut off at the ends."""
        low = np.clip(ln_tokens - _REACH / 2, self.x[0], self.x[-1])
        high = np.clip(ln_tokens + _REACH / 2, self.x[0], self.x[-1])
        rise = np.interp(high, self.x, self.y) - np.interp(low, self.x, self.y)
        return rise / np.maximum(high - low, 1e-12)

    def extended(self, ln_tokens: np.ndarray) -> np.ndarray:
        """ln(loss), continued beyond the last evaluation with the slope there. For simulation, not for reading laws."""
        beyond = np.maximum(ln_tokens - self.end, 0.0)
        return np.interp(ln_tokens, self.x, self.y) + beyond * self.slope(np.array(self.end))


@dataclass(frozen=True)
class Curves:
    """Versions of one run's curve, read together. x, y: as of `Curve`, one version after the other, of which version k
    is [low[k] : high[k]]; start: of all."""

    x: np.ndarray
    y: np.ndarray
    low: list[int]
    high: list[int]
    start: float

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, version: int) -> Curve:
        rows = slice(self.low[version], self.high[version])
        return Curve(self.x[rows], self.y[rows], self.start)

    @property
    def end(self) -> float:
        """ln(tokens) of the last evaluation."""
        return float(self.x[self.high[0] - 1])

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.x.nbytes + self.y.nbytes

    def ln_loss(self, ln_tokens: np.ndarray) -> np.ndarray:
        """ln(loss) [versions, n] at `ln_tokens` [n]; nan outside the readable range."""
        out = np.empty((len(self), len(ln_tokens)))
        for k, (a, b) in enumerate(zip(self.low, self.high, strict=True)):
            out[k] = np.interp(ln_tokens, self.x[a:b], self.y[a:b])
        out[:, (ln_tokens < self.start - _EDGE) | (ln_tokens > self.end + _EDGE)] = np.nan
        return out

    def ln_tokens(self, ln_loss: np.ndarray) -> np.ndarray:
        """ln(tokens) [versions, n] at which each first reaches `ln_loss` [n], as `Curve.ln_tokens`."""
        # All versions are one rising array when each lies `_APART` above the one before.
        low, high = np.array(self.low)[:, None], np.array(self.high)[:, None]
        shift = _APART * np.arange(len(self))
        sizes = np.diff(self.low, append=len(self.y))
        past = np.searchsorted(np.repeat(shift, sizes) - self.y, shift[:, None] - ln_loss)
        past = np.clip(past, low, high - 1)
        before = np.maximum(past - 1, low)
        first, second = self.y[before], self.y[past]
        share = np.clip((first - ln_loss) / np.where(first > second, first - second, 1.0), 0.0, 1.0)
        reached = self.x[before] + share * (self.x[past] - self.x[before])
        never, already = ln_loss < self.y[high - 1], ln_loss > self.y[low]
        return np.where(already, -np.inf, np.where(never, np.nan, reached))


def smooth(ln_tokens: np.ndarray, ln_loss: np.ndarray, start: float = -np.inf) -> Curve:
    """Decreasing fit to one run's evaluations at increasing `ln_tokens`; one evaluation gives a curve of one point."""
    return smooth_versions(ln_tokens, ln_loss[None], start)[0]


def smooth_versions(
    ln_tokens: np.ndarray, ln_loss: np.ndarray, start: float = -np.inf, *, first: Curve | None = None
) -> Curves:
    """`smooth` of each row of `ln_loss` [versions, n], all at the same `ln_tokens` [n]; after `first`, if given."""
    number, n = ln_loss.shape
    x, y, low, high = _smooth(np.tile(ln_tokens, number), ln_loss.ravel(), np.full(number, n), first)
    return Curves(x, y, low, high, max(start, float(ln_tokens[0])))


def smooth_runs(ln_tokens: Sequence[np.ndarray], ln_loss: Sequence[np.ndarray], start: np.ndarray) -> list[Curve]:
    """`smooth` of many runs, each with its own evaluations. start: [runs]."""
    if not len(ln_tokens):
        return []
    sizes = np.array([len(x) for x in ln_tokens])
    x, y, low, high = _smooth(np.concatenate(ln_tokens), np.concatenate(ln_loss), sizes)
    starts = np.maximum(start, [at[0] for at in ln_tokens]).tolist()
    return [Curve(x[a:b], y[a:b], s) for a, b, s in zip(low, high, starts, strict=True)]


def _smooth(
    x: np.ndarray, y: np.ndarray, sizes: np.ndarray, first: Curve | None = None
) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Fine grids of curves of `sizes` points each, flat, and where each begins and ends in them; `first` before all."""
    lead = 0 if first is None else len(first.x)
    x, y, sizes = _knots(x, y, sizes)
    last = np.cumsum(sizes) - 1
    rise, slopes, widths = np.zeros_like(x), _slopes(x, y, sizes), np.zeros_like(x)
    widths[:-1], rise[:-1] = x[1:] - x[:-1], y[1:] - y[:-1]
    widths[last] = rise[last] = 0.0  # what follows the last knot of a curve repeats it
    # The cubic of an interval over its first value, by Hermite's basis.
    cubic = np.stack([rise, widths * slopes, widths * np.append(slopes[1:], 0.0)], axis=1)
    at = np.arange(_FINE) / _FINE
    basis = np.stack([at**2 * (3 - 2 * at), at * (1 - at) ** 2, -(at**2) * (1 - at)])
    fine_x, fine_y = np.empty((2, lead + _FINE * len(x)))
    grid_x, grid_y = fine_x[lead:].reshape(-1, _FINE), fine_y[lead:].reshape(-1, _FINE)
    np.add(np.multiply(widths[:, None], at, out=grid_x), x[:, None], out=grid_x)
    np.add(np.matmul(cubic, basis, out=grid_y), y[:, None], out=grid_y)
    low, high = (lead + _FINE * (last - sizes + 1)).tolist(), (lead + _FINE * last + 1).tolist()
    if first is not None:
        fine_x[:lead], fine_y[:lead], low, high = first.x, first.y, [0, *low], [lead, *high]
    return fine_x, fine_y, low, high


def _knots(x: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels of each curve's isotonic fit, each at its centre, and how many each curve has. The outermost levels
    reach to the ends of the run, so that it can be read over its whole length."""
    first, level = _levels(y, sizes)
    counts = np.diff(first, append=len(y))
    centre = np.add.reduceat(x, first) / counts
    ends = np.cumsum(sizes)
    own = np.searchsorted(first, ends - sizes)  # index of each curve's first level
    final = np.append(own[1:], len(first)) - 1
    front, back = counts[own] > 1, counts[final] > 1
    levels = final - own + 1
    total = levels + front + back
    begin = np.cumsum(total) - total
    place = np.arange(len(first)) + np.repeat(begin + front - own, levels)
    out_x, out_y = np.empty(int(total.sum())), np.empty(int(total.sum()))
    out_x[place], out_y[place] = centre, level
    out_x[begin[front]], out_y[begin[front]] = x[(ends - sizes)[front]], level[own[front]]
    tip = (begin + total - 1)[back]
    out_x[tip], out_y[tip] = x[ends[back] - 1], level[final[back]]
    return out_x, out_y, total


def _levels(y: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic (not increasing) regression of each curve: index at which each level begins, and its value.

    Neighbours that rise belong to one level, whatever else happens to them, so all such chains are pooled at once,
    until none rises: as pooling adjacent violators one by one, but in a few passes over all curves.
    """
    first = np.arange(len(y))
    new = np.zeros(len(y), dtype=bool)  # begins a curve
    new[np.cumsum(sizes) - sizes] = True
    total, count, level = y, np.ones(len(y)), y
    while True:
        keep = new.copy()
        keep[1:] |= level[1:] < level[:-1]
        if keep.all():
            return first, level
        chosen = np.flatnonzero(keep)
        total, count = np.add.reduceat(total, chosen), np.add.reduceat(count, chosen)
        first, new, level = first[chosen], new[chosen], total / count


def _slopes(x: np.ndarray, y: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Slope at each knot of curves of `sizes` knots, as PCHIP has it: the weighted harmonic mean of those of the two
    intervals, zero where these differ in sign; at the ends of a curve from its three outermost knots."""
    slopes = np.zeros_like(x)
    if len(x) < 2:
        return slopes
    h, m = x[1:] - x[:-1], y[1:] - y[:-1]
    m = m / np.where(h > 0, h, 1.0)  # an interval from one curve to the next is not used
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    same = m[1:] * m[:-1] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes[1:-1] = np.where(same, (w1 + w2) / (w1 / m[:-1] + w2 / m[1:]), 0.0)
    last = np.cumsum(sizes) - 1
    begin = last - sizes + 1
    for end, near, far in ((begin, begin, begin + 1), (last, last - 1, last - 2)):
        some = sizes > 2
        slopes[end[some]] = _end_slope(h[near[some]], h[far[some]], m[near[some]], m[far[some]])
        slopes[end[sizes == 2]] = m[near[sizes == 2]]
    return slopes


def _end_slope(h0: np.ndarray, h1: np.ndarray, m0: np.ndarray, m1: np.ndarray) -> np.ndarray:
    """Three-point slope at an end, kept within what a monotone cubic allows. 0 is the outermost interval."""
    slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    slope = np.where((np.sign(m0) != np.sign(m1)) & (np.abs(slope) > 3 * np.abs(m0)), 3 * m0, slope)
    return np.where(np.sign(slope) == np.sign(m0), slope, 0.0)

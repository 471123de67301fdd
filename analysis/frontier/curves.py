"""One smoothed curve a model size, from the evaluations of any table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import convolve1d

from analysis.outcome import Warnings
from analysis.tables.curves import smooth
from sweep.schema import InputError

LAW = "frontier"
WINDOW = 10  # evaluations that the Gaussian takes in (Hoffmann et al. 2022, section 3.1)
DENSE = 50  # evaluations of a run from which on it is smoothed so
_READ = 400  # points at which a smoothed curve is kept


@dataclass(frozen=True)
class SizeCurve:
    """params: N. ln_k: of the FLOPs per token. runs: ln C (or ln C_min) and ln L of each run's smoothed curve."""

    params: float
    ln_k: float
    runs: list[tuple[np.ndarray, np.ndarray]]

    def lowest(self) -> tuple[np.ndarray, np.ndarray]:
        """ln C, increasing, and the lowest ln L of the runs there."""
        if len(self.runs) == 1:
            return self.runs[0]
        x = np.unique(np.concatenate([x for x, _ in self.runs]))
        return x, np.min([np.interp(x, own, y, np.inf, np.inf) for own, y in self.runs], axis=0)


@dataclass(frozen=True)
class RunCurve:
    """A run: N, ln k, its batch (nan: unknown), its smoothed ln L at ln D, and how many rows of the table it is."""

    params: float
    ln_k: float
    batch: float
    ln_tokens: np.ndarray
    ln_loss: np.ndarray
    rows: int


def read_runs(
    columns: Mapping[str, np.ndarray], run: np.ndarray, warmup: np.ndarray, warnings: Warnings
) -> list[RunCurve]:
    """The curves of all runs that have two evaluations past their warm-up. columns: params, tokens, loss, flops and
    perhaps batch_tokens [n]; run: [n] labels; warmup: tokens [n]. Raises InputError for a run of several sizes or
    batches."""
    past = columns["tokens"] >= warmup
    if not past.all():
        warnings.add(LAW, "inside_warmup", f"{int((~past).sum())} points inside the warm-up of their run are left out")
    _, of = np.unique(run, return_inverse=True)
    found, short = [], 0
    for rows in np.split(np.argsort(of, kind="stable"), np.flatnonzero(np.diff(np.sort(of))) + 1):
        for name in ("params", "batch_tokens"):
            if name in columns and np.ptp(columns[name][rows]) > 0:
                raise InputError(
                    f"{LAW}: run {run[rows[0]]} has several {name}; give each run a label of its own in `run`"
                )
        rows = rows[past[rows]]
        ln_tokens, at = np.unique(np.log(columns["tokens"][rows]), return_inverse=True)
        if len(ln_tokens) < 2:
            short += 1
            continue
        ln_loss = np.bincount(at, np.log(columns["loss"][rows])) / np.bincount(at)
        x, y = smoothed(ln_tokens, ln_loss)
        per_token = np.log(columns["flops"][rows] / columns["tokens"][rows])
        batch = float(columns["batch_tokens"][rows[0]]) if "batch_tokens" in columns else np.nan
        found.append(RunCurve(float(columns["params"][rows[0]]), float(np.median(per_token)), batch, x, y, len(rows)))
    if short:
        what, are = ("1 run", "is") if short == 1 else (f"{short} runs", "are")
        warnings.add(LAW, "short_runs", f"{what} with fewer than two points past the warm-up {are} left out")
    return found


def smoothed(ln_tokens: np.ndarray, ln_loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve at no more than `_READ` log-spaced points. A dense one is averaged with Gaussian weights over `WINDOW`
    evaluations; at its ends it is continued by its point reflection, which keeps its slope."""
    if len(ln_tokens) < DENSE:
        curve = smooth(ln_tokens, ln_loss)
        return curve.x, curve.y
    half = WINDOW // 2
    weight = np.exp(-0.5 * (np.arange(-half, half + 1) / (WINDOW / 4)) ** 2)
    padded = np.pad(ln_loss, half, mode="reflect", reflect_type="odd")
    y = convolve1d(padded, weight / weight.sum())[half:-half]
    x = np.linspace(ln_tokens[0], ln_tokens[-1], min(_READ, len(ln_tokens)))
    return x, np.interp(x, ln_tokens, y)


def by_size(runs: list[RunCurve], law: tuple[float, float] | None) -> list[SizeCurve]:
    """Sizes, smallest first, against ln C, or against ln C_min with a law (intercept, slope) of ln B_crit on ln L."""
    sizes: dict[float, list[RunCurve]] = {}
    for run in sorted(runs, key=lambda r: r.params):
        sizes.setdefault(run.params, []).append(run)
    return [
        SizeCurve(params, float(np.mean([run.ln_k for run in own])), [_against(run, law) for run in own])
        for params, own in sizes.items()
    ]


def _against(run: RunCurve, law: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    x = run.ln_tokens + run.ln_k
    if law is not None:
        x = x - np.logaddexp(0.0, np.log(run.batch) - law[0] - law[1] * run.ln_loss)
        x = np.maximum.accumulate(x)  # where noise in the loss would turn it back
    return x, run.ln_loss

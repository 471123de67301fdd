"""Which runs may be compared: groups of one shape and recipe, decayed against undecayed, seeds, and their noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.tables.curves import Curve, Curves, smooth_runs, smooth_versions
from analysis.tables.table import Table

# Only these may be read in the middle of a run: elsewhere the loss still owes the drop of the learning-rate decay.
UNDECAYED = ("constant", "inverse_sqrt")
SHAPE = ("family", "n_layer", "d_model", "n_head", "d_head", "d_ff", "n_ctx", "vocab_size")
# What else must agree for two runs to be comparable. Learning rate, beta2 and warm-up are tuned per batch size and are
# an axis to take the best over, not a condition.
RECIPE = ("optimizer", "weight_decay", "schedule", "precision", "weight_average")

ASSUMED_SIGMA = 0.006  # SD of ln(loss) between seeds where none were repeated: 0.02 nats at 3 (Kaplan et al., 4.2)
ASSUMED_CORRELATION = 1.0  # of that noise, in ln(tokens)

DENSE = 64  # evaluations of a run; where there are more, they are averaged
PER_DECADE = 12  # of tokens: the averages


@dataclass(frozen=True)
class Run:
    """What the laws need of one run. `setting` is (lr, beta2, warm-up steps): what is tuned at each batch size.
    `ln_tokens`, `ln_loss`: its evaluations past the start, or the averages of many (`thin`)."""

    run_id: str
    group: str
    recipe: tuple[object, ...]
    params: float
    flops_per_token: float  # of training, forward and backward
    batch: float  # tokens
    lr: float
    setting: tuple[float, ...]
    seed: int
    decayed: bool
    n_layer: int
    ln_tokens: np.ndarray
    ln_loss: np.ndarray
    warmup: float  # tokens
    unique_tokens: float  # of its data, nan where not recorded
    curve: Curve

    @property
    def final_tokens(self) -> float:
        """Tokens at the last evaluation."""
        return float(np.exp(self.ln_tokens[-1]))

    @property
    def final_flops(self) -> float:
        """Training FLOPs at the last evaluation."""
        return self.flops_per_token * self.final_tokens

    def curves_with(self, ln_loss: np.ndarray | None) -> Curves:
        """Its smoothed curve, and those with other losses [versions, n], if there are any."""
        if ln_loss is None or not len(ln_loss):
            return Curves(self.curve.x, self.curve.y, [0], [len(self.curve.x)], self.curve.start)
        return smooth_versions(self.ln_tokens, ln_loss, self.curve.start, first=self.curve)


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of ln(loss) between seeds at equal tokens, its correlation length in ln(tokens), and the
    effective degrees of freedom behind it (0: assumed): a pair of curves counts once a correlation length."""

    sigma: float
    correlation: float
    freedom: float


def extract(table: Table) -> list[Run]:
    """Runs of a table with their smoothed curves. Of runs that differ only in their length, the longest is kept."""
    tokens, loss = (table.curves[name].to_numpy() for name in ("tokens", "test_loss"))
    starts = np.log(np.fmax(table.runs["warmup_tokens"].to_numpy(dtype=float, na_value=0.0), 1e-300))
    evaluations = [
        _evaluations(tokens[first:past], loss[first:past], start)
        for (first, past), start in zip(table.spans().tolist(), starts, strict=True)
    ]
    curves = smooth_runs([x for x, _ in evaluations], [y for _, y in evaluations], starts)
    rows = table.runs.to_dict("records")
    runs = [
        _run({str(key): value for key, value in row.items()}, label, table.pooled, x, y, curve)
        for row, label, (x, y), curve in zip(rows, _labels(table.runs), evaluations, curves, strict=True)
    ]
    kept: dict[tuple[object, ...], Run] = {}
    for run in runs:
        # Decayed runs of different lengths are different points of one law; undecayed ones are one curve.
        length = run.final_tokens if run.decayed else 0.0
        data = "" if math.isnan(run.unique_tokens) else run.unique_tokens
        key = (run.group, run.recipe, run.batch, run.setting, run.seed, data, length)
        if key not in kept or run.final_tokens > kept[key].final_tokens:
            kept[key] = run
    return list(kept.values())


def with_losses(runs: Sequence[Run], ln_loss: Sequence[np.ndarray]) -> list[Run]:
    """The same runs with other losses [n] at their `ln_tokens` [n]."""
    starts = np.array([run.curve.start for run in runs])
    curves = smooth_runs([run.ln_tokens for run in runs], ln_loss, starts)
    return [replace(run, ln_loss=y, curve=c) for run, y, c in zip(runs, ln_loss, curves, strict=True)]


def thin(ln_tokens: np.ndarray, ln_loss: np.ndarray, start: float = -math.inf) -> tuple[np.ndarray, np.ndarray]:
    """The evaluations of a run, or where they are more than `DENSE`, their means over `PER_DECADE` intervals of
    ln(tokens) a decade. None crosses `start`, the end of the warm-up, and the last evaluation stands alone, for a
    decayed run is read there.

    Between neighbours so close noise hardly changes and the loss is all but straight: the mean over an interval of
    width w lies w^2/24 times the curvature off, 1.5e-3 of it. The laws then cost the same whatever a run logged.
    """
    if len(ln_tokens) <= DENSE:
        return ln_tokens, ln_loss
    interval = np.ceil((ln_tokens[-1] - ln_tokens) * (PER_DECADE / math.log(10)))
    begins = np.append(True, (interval[1:] != interval[:-1]) | ((ln_tokens[1:] >= start) & (ln_tokens[:-1] < start)))
    first = np.flatnonzero(begins)
    count = np.diff(first, append=len(ln_tokens))
    return np.add.reduceat(ln_tokens, first) / count, np.add.reduceat(ln_loss, first) / count


def main_recipe(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[object, ...]]]:
    """Runs of the recipe with the most model sizes (then the most runs), and the recipes left out."""
    recipes: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        recipes[run.recipe].append(run)
    if not recipes:
        return [], []
    best = max(recipes, key=lambda r: (len({run.params for run in recipes[r]}), len(recipes[r])))
    return recipes[best], [recipe for recipe in recipes if recipe != best]


def seed_noise(runs: Iterable[Run]) -> SeedNoise:
    """Pooled over all sets of runs that differ in the seed alone, past the warm-up and in the last 1.5 decades of
    tokens (what the laws read); assumed values where there is no such set."""
    sets: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        length = run.final_tokens if run.decayed else 0.0
        sets[(run.group, run.recipe, run.batch, run.setting, length)].append(run)
    squares, lagged, freedom, points, lags = 0.0, 0.0, 0, 0, []
    spans: list[tuple[int, float]] = []  # (degrees of freedom, ln(tokens)) of each set
    weights = 0.0
    for members in sets.values():
        if len(members) < 2:
            continue
        grid = min((run.ln_tokens for run in members), key=lambda x: x[-1])
        start = max(max(run.curve.start for run in members), grid[-1] - 1.5 * math.log(10))
        grid = grid[grid >= start - 1e-9]
        if members[0].decayed:
            grid = grid[-1:]
        if not len(grid):  # all of it lies in the warm-up
            continue
        values = np.array([np.interp(grid, run.ln_tokens, run.ln_loss) for run in members])
        residuals = values - values.mean(axis=0)
        squares += float((residuals**2).sum()) / len(grid)
        freedom += len(members) - 1
        spans.append((len(members) - 1, float(grid[-1] - grid[0])))
        if len(grid) > 1:
            points += 1
            lagged += float((residuals[:, 1:] * residuals[:, :-1]).sum())
            weights += float(((residuals[:, 1:] ** 2 + residuals[:, :-1] ** 2) / 2).sum())
            lags.extend(np.diff(grid))
    if not freedom or squares == 0:
        return SeedNoise(ASSUMED_SIGMA, ASSUMED_CORRELATION, 0)
    correlation = ASSUMED_CORRELATION
    if weights > 0:
        rho = min(max(lagged / weights, 0.01), 0.99)
        correlation = float(np.mean(lags)) / -math.log(rho)
    effective = sum(own * max(1.0, span / correlation) for own, span in spans)
    return SeedNoise(math.sqrt(squares / freedom), correlation, effective)


def _evaluations(tokens: np.ndarray, loss: np.ndarray, start: float) -> tuple[np.ndarray, np.ndarray]:
    """ln(tokens) and ln(loss) of one run. One before training has no place on a logarithmic axis."""
    seen = tokens > 0
    return thin(np.log(tokens[seen]), np.log(loss[seen]), start)


def _run(
    row: dict[str, object], label: str, pooled: bool, ln_tokens: np.ndarray, ln_loss: np.ndarray, curve: Curve
) -> Run:
    batch = float(row["batch_tokens"])  # type: ignore[arg-type]
    warmup = _number(row["warmup_tokens"], 0.0)
    decayed = row["schedule"] not in UNDECAYED
    recipe = tuple(None if pd.isna(row[name]) else row[name] for name in RECIPE)  # type: ignore[call-overload]
    data = None if pooled or pd.isna(row["data_hash"]) else row["data_hash"]  # type: ignore[call-overload]
    lr = float(row["lr"])  # type: ignore[arg-type]
    return Run(
        run_id=str(row["run_id"]),
        group=label,
        # A decay that was cut short is another recipe than one that was finished.
        recipe=(*recipe, data, decayed and _number(row["schedule_steps"], 0.0) > _number(row["steps"], math.inf)),
        params=float(row["params"]),  # type: ignore[arg-type]
        flops_per_token=_number(row["flops_per_token"], 6 * float(row["params"])),  # type: ignore[arg-type]
        batch=batch,
        lr=lr,
        setting=(lr, _number(row["beta2"], 0.0), round(warmup / batch)),
        seed=int(row["seed"]),  # type: ignore[call-overload]
        decayed=decayed,
        n_layer=int(_number(row["n_layer"], 0)),
        ln_tokens=ln_tokens,
        ln_loss=ln_loss,
        warmup=warmup,
        unique_tokens=_number(row["unique_tokens"], math.nan),
        curve=curve,
    )


def _number(value: object, default: float) -> float:
    return default if pd.isna(value) else float(value)  # type: ignore[call-overload, arg-type]


def _labels(runs: pd.DataFrame) -> list[str]:
    """A short label per shape, "layers x width", longer only where that would be ambiguous."""
    names = [name for name in SHAPE if runs[name].notna().any()]
    shapes = [tuple(values) for values in runs[names].astype("string").fillna("").itertuples(index=False)]
    if not {"n_layer", "d_model"} <= set(names):
        return [f"N={int(params)}" for params in runs["params"]]
    short = {shape: f"{shape[names.index('n_layer')]}x{shape[names.index('d_model')]}" for shape in set(shapes)}
    twins: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for shape, text in short.items():
        twins[text].append(shape)
    varied = [i for i in range(len(names)) if any(len({shape[i] for shape in same}) > 1 for same in twins.values())]
    short = {s: " ".join([text, *(f"{names[i]}={s[i]}" for i in varied)]) for s, text in short.items()}
    return [short[shape] for shape in shapes]

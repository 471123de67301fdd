"""Which runs may be compared: groups of one shape and recipe, decayed against undecayed, seeds, and their noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.tables.curves import Curve, smooth
from analysis.tables.table import Table

# Only these may be read in the middle of a run: elsewhere the loss still owes the drop of the learning-rate decay.
UNDECAYED = ("constant", "inverse_sqrt")
SHAPE = ("family", "n_layer", "d_model", "n_head", "d_head", "d_ff", "n_ctx", "vocab_size")
# What else must agree for two runs to be comparable. Learning rate, beta2 and warm-up are tuned per batch size and are
# an axis to take the best over, not a condition.
RECIPE = ("optimizer", "weight_decay", "schedule", "precision", "weight_average")

ASSUMED_SIGMA = 0.006  # SD of ln(loss) between seeds where none were repeated: 0.02 nats at 3 (Kaplan et al., 4.2)
ASSUMED_CORRELATION = 1.0  # of that noise, in ln(tokens)


@dataclass(frozen=True)
class Run:
    """What the laws need of one run. `setting` is (lr, beta2, warm-up steps): what is tuned at each batch size."""

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
    steps: np.ndarray
    warmup: float  # tokens
    curve: Curve

    @property
    def final_tokens(self) -> float:
        """Tokens at the last evaluation."""
        return float(np.exp(self.ln_tokens[-1]))

    @property
    def final_flops(self) -> float:
        """Training FLOPs at the last evaluation."""
        return self.flops_per_token * self.final_tokens

    def with_loss(self, ln_loss: np.ndarray) -> Run:
        """The same run with other losses."""
        return replace(self, ln_loss=ln_loss, curve=smooth(self.ln_tokens, ln_loss, self.curve.start))


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of ln(loss) between seeds at equal tokens, its correlation length in ln(tokens), and the
    effective degrees of freedom behind it (0: assumed): a pair of curves counts once a correlation length."""

    sigma: float
    correlation: float
    freedom: float


def extract(table: Table) -> list[Run]:
    """Runs of a table with their smoothed curves. Of runs that differ only in their length, the longest is kept."""
    curves = {str(key): frame for key, frame in table.curves.groupby("run_id", sort=False)}
    labels = _labels(table.runs)
    runs = []
    for row, label in zip(table.runs.to_dict("records"), labels, strict=True):
        fields = {str(key): value for key, value in row.items()}
        runs.append(_run(fields, label, curves[str(row["run_id"])], table.pooled))
    kept: dict[tuple[object, ...], Run] = {}
    for run in runs:
        # Decayed runs of different lengths are different points of one law; undecayed ones are one curve.
        length = run.final_tokens if run.decayed else 0.0
        key = (run.group, run.recipe, run.batch, run.setting, run.seed, length)
        if key not in kept or run.final_tokens > kept[key].final_tokens:
            kept[key] = run
    return list(kept.values())


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


def _run(row: dict[str, object], label: str, curve: pd.DataFrame, pooled: bool) -> Run:
    tokens = curve["tokens"].to_numpy(dtype=float)
    seen = tokens > 0  # an evaluation before training has no place on a logarithmic axis
    tokens = tokens[seen]
    ln_loss = np.log(curve["test_loss"].to_numpy(dtype=float)[seen])
    batch = float(row["batch_tokens"])  # type: ignore[arg-type]
    warmup = _number(row["warmup_tokens"], 0.0)
    decayed = row["schedule"] not in UNDECAYED
    recipe = tuple(None if pd.isna(row[name]) else row[name] for name in RECIPE)  # type: ignore[call-overload]
    data = None if pooled or pd.isna(row["data_hash"]) else row["data_hash"]  # type: ignore[call-overload]
    lr = float(row["lr"])  # type: ignore[arg-type]
    start = math.log(warmup) if warmup > 0 else -math.inf
    ln_tokens = np.log(tokens)
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
        steps=curve["step"].to_numpy(dtype=float)[seen],
        warmup=warmup,
        curve=smooth(ln_tokens, ln_loss, start),
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
    twins = [(one, other) for one in short for other in short if short[one] == short[other]]
    varied = [i for i in range(len(names)) if any(one[i] != other[i] for one, other in twins)]
    short = {s: " ".join([text, *(f"{names[i]}={s[i]}" for i in varied)]) for s, text in short.items()}
    return [short[shape] for shape in shapes]

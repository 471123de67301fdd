"""Sweeps drawn from known laws: what the analysis is tested on, and what intervals are judged by.

The truth is Kaplan et al. 2020: L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (Eq. 5.6) with
S_min = S / (1 + B_crit(L)/B) (Eq. 5.4) and B_crit(L) = B_star / L^(1/alpha_B) (Eq. 5.3), so that every planted
quantity (S_min, E_min, B_crit, the exponents of N, B and S against C_min, Eq. 1.7) is known in closed form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.tables.table import Table, make_table
from analysis.uncertainty.bootstrap import correlated_noise
from sweep.schema import RUN_COLUMNS


@dataclass(frozen=True)
class Truth:
    """Planted constants. The defaults resemble byte-level text and models of 3e3 to 2e5 parameters."""

    N_c: float = 1.6e8
    alpha_N: float = 0.07
    S_c: float = 39.0
    alpha_S: float = 0.78
    B_star: float = 2.0e6  # tokens
    alpha_B: float = 0.135

    @property
    def alpha_C_min(self) -> float:
        """Exponent of L(C_min) (Kaplan et al. 2020, Eq. 1.7)."""
        return 1 / (1 / self.alpha_S + 1 / self.alpha_B + 1 / self.alpha_N)

    @property
    def exponents(self) -> dict[str, float]:
        """Exponents of N, B and S against C_min; they sum to one."""
        alpha = {"N": self.alpha_N, "B": self.alpha_B, "S": self.alpha_S}
        return {name: self.alpha_C_min / value for name, value in alpha.items()}

    def B_crit(self, loss: np.ndarray | float) -> np.ndarray:
        """Critical batch in tokens at `loss`."""
        return self.B_star * np.asarray(loss, dtype=float) ** (-1 / self.alpha_B)

    def S_min(self, params: float, loss: np.ndarray | float) -> np.ndarray:
        """Least steps to `loss` at size `params`; nan below the loss of infinite training."""
        excess = np.asarray(loss, dtype=float) - (self.N_c / params) ** self.alpha_N
        return self.S_c * np.where(excess > 0, excess, np.nan) ** (-1 / self.alpha_S)

    def loss(self, params: float, batch: float, steps: np.ndarray) -> np.ndarray:
        """Loss after `steps` updates of `batch` tokens, by bisection in ln L (the law is implicit in L)."""
        steps = np.asarray(steps, dtype=float)
        low = np.full_like(steps, self.alpha_N * math.log(self.N_c / params))
        high = np.full_like(steps, math.log(1e6))
        for _ in range(80):
            middle = (low + high) / 2
            loss = np.exp(middle)
            needed = self.S_min(params, loss) * (1 + self.B_crit(loss) / batch)
            reached = needed <= steps
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.exp((low + high) / 2)


_TRANSIENT = 0.5  # of ln(loss) at the start of a warm-up; gone (1e-4 of it) at its end

# (layers, width) -> batches in sequences of 128 tokens: the layout of a small sweep, with one batch size in common.
SMALL_SWEEP: dict[tuple[int, int], tuple[int, ...]] = {
    (2, 8): (16,),
    (2, 16): (2, 4, 8, 16, 32, 64, 128),
    (2, 24): (16,),
    (2, 32): (2, 4, 8, 16, 32, 64, 128),
    (2, 48): (16,),
    (3, 64): (16,),
}


def synthetic_sweep(
    truth: Truth | None = None,
    *,
    cells: Mapping[tuple[int, int], Sequence[int]] = SMALL_SWEEP,
    tokens: float = 6e6,
    sigma: float = 0.004,
    correlation: float = 1.0,
    seeds: Mapping[tuple[int, int, int], int] | None = None,
    lr_factors: Sequence[float] = (1.0,),
    lr_penalty: float = 0.1,
    tuning: float = 0.0,
    warmup: float = 0.0,
    n_ctx: int = 128,
    points_per_decade: int = 8,
    seed: int = 0,
) -> Table:
    """A sweep as `isoloss collect` would give it, drawn from `truth`.

    cells: (n_layer, d_model) -> batches in sequences. A batch of B tokens runs T·(1 + B/B_crit) tokens with B_crit at
    the
        loss that small batches reach, so that all batches reach about the same losses; T is `tokens` at N = 24,576 and
        falls as N^-0.5, so that small sizes are still running at the compute where larger ones overtake them.
    sigma, correlation: standard deviation of ln(loss) between seeds, and its correlation length in ln(tokens).
    seeds: (n_layer, d_model, sequences) -> number of seeds; three at batch 16 of the two smallest sizes by default.
    lr_factors: rates as multiples of the best one; a factor f costs exp(lr_penalty·ln(f)²) times the steps.
    tuning: standard deviation of ln(steps) between cells, as from rates that are not equally well tuned everywhere.
    warmup: tokens of the warm-up, in which losses lie up to `_TRANSIENT` above the law and which the analysis must not
        read.
    """
    truth = truth or Truth()
    rng = np.random.default_rng(seed)
    if seeds is None:
        seeds = {(*shape, 16): 3 for shape in sorted(cells, key=lambda s: s[0] * s[1] ** 2)[:2]}
    runs: list[dict[str, object]] = []
    curves: list[pd.DataFrame] = []
    for (n_layer, d_model), batches in cells.items():
        params = 12 * n_layer * d_model**2
        horizon = tokens * (24576 / params) ** 0.5
        reached = truth.loss(params, n_ctx, np.array([horizon / n_ctx]))
        for sequences in batches:
            batch = sequences * n_ctx
            steps = math.ceil(horizon * (1 + batch / float(truth.B_crit(reached)[0])) / batch)
            mistuned = tuning * rng.standard_normal()
            for lr_factor in lr_factors:
                for number in range(seeds.get((n_layer, d_model, sequences), 1)):
                    run_id = f"{n_layer}x{d_model}-{sequences}-{lr_factor:g}-{number}"
                    at = _evaluation_steps(steps, batch, points_per_decade)
                    slowed = at * math.exp(mistuned - lr_penalty * math.log(lr_factor) ** 2)
                    loss = truth.loss(params, batch, slowed)
                    if warmup:
                        loss = loss * np.exp(_TRANSIENT * np.exp(-((3 * at * batch / warmup) ** 2)))
                    noise = correlated_noise(np.log(at * batch), correlation, rng)[0]
                    loss = loss * np.exp(sigma * noise)
                    lr = lr_factor * 3e-3 * math.sqrt(sequences)
                    row = run_row(run_id, n_layer, d_model, n_ctx, batch, steps, lr, number, float(loss[-1]))
                    row["warmup_tokens"] = warmup
                    runs.append(row)
                    curves.append(curve_rows(row, at, loss))
    return make_table(pd.DataFrame(runs), pd.concat(curves, ignore_index=True), source="synthetic sweep")


DECAYED_LAW = {"A": 20.0, "B": 400.0, "E": 1.2, "alpha": 0.35, "beta": 0.4}


def decayed_sweep(
    budgets: Sequence[float],
    law: Mapping[str, float] | None = None,
    *,
    shapes: Sequence[tuple[int, int]] = tuple(SMALL_SWEEP),
    sigma: float = 0.0,
    schedule: str = "cosine",
    seeds: int = 1,
    lr_factors: Sequence[float] = (1.0,),
    lr_penalty: float = 0.1,
    n_ctx: int = 128,
    batch: int = 2048,
    seed: int = 0,
) -> Table:
    """Runs of every shape to every budget (FLOP) under a decaying schedule, with final losses E + A/N^alpha + B/D^beta
    (constants that `law` does not give are of `DECAYED_LAW`) and independent noise of ln(loss). What the curves hold
    before their end is too high, as under a schedule not yet run down. `seeds`: of every shape at the lowest budget.
    lr_factors: rates as multiples of the best one; a factor f costs lr_penalty·ln(f)² of ln(loss)."""
    k = DECAYED_LAW | dict(law or {})
    rng = np.random.default_rng(seed)
    runs: list[dict[str, object]] = []
    curves: list[pd.DataFrame] = []
    for n_layer, d_model in shapes:
        params = 12 * n_layer * d_model**2
        for budget in budgets:
            steps = max(4, round(budget / (6 * params * batch)))
            at = np.unique(np.linspace(steps / 4, steps, 4).astype(int))
            clean = k["E"] + k["A"] / params ** k["alpha"] + k["B"] / (at * batch) ** k["beta"]
            clean = clean * (1 + 0.1 * (1 - at / steps))
            cells = itertools.product(lr_factors, range(seeds if budget == min(budgets) else 1))
            for factor, number in cells:
                loss = clean * np.exp(sigma * rng.standard_normal() + lr_penalty * math.log(factor) ** 2)
                name = f"{n_layer}x{d_model}-{budget:.3g}-{factor:g}-{number}"
                row = run_row(name, n_layer, d_model, n_ctx, batch, steps, 3e-3 * factor, number, float(loss[-1]))
                runs.append(row | {"schedule": schedule})
                curves.append(curve_rows(row, at, loss))
    return make_table(pd.DataFrame(runs), pd.concat(curves, ignore_index=True), source="synthetic decayed sweep")


def _evaluation_steps(steps: int, batch: int, per_decade: int) -> np.ndarray:
    grid = 10 ** (np.arange(math.floor(4 * per_decade), 12 * per_decade) / per_decade)
    at = np.ceil(grid[grid < steps * batch] / batch)
    tail = steps * (1 - np.array([0.1, 0.05, 0.025, 0.0]))
    return np.unique(np.concatenate([at, np.ceil(tail)]))


def run_row(
    run_id: str, n_layer: int, d_model: int, n_ctx: int, batch: int, steps: int, lr: float, seed: int, loss: float
) -> dict[str, object]:
    """A run as the run table holds it, of a GPT-2 shape without a warm-up or a decay."""
    params = 12 * n_layer * d_model**2
    row: dict[str, object] = dict.fromkeys(RUN_COLUMNS)
    row |= {"run_id": run_id, "family": "gpt2", "n_layer": n_layer, "d_model": d_model, "n_head": max(1, d_model // 16)}
    row |= {"d_head": d_model // max(1, d_model // 16), "d_ff": 4 * d_model, "n_ctx": n_ctx, "vocab_size": 256}
    row |= {"params_embedding": 256 * d_model, "params_position": n_ctx * d_model, "params_attention": params // 3}
    row |= {"params_mlp": params - params // 3, "params_norm_bias": 13 * n_layer * d_model, "params_head": 0}
    row |= {"params": params, "params_total": params + (256 + n_ctx + 13 * n_layer) * d_model}
    row |= {"flops_per_token": 6.0 * params, "flops_per_token_context": 6.0 * n_layer * n_ctx * d_model}
    row |= {"flops_per_token_head": 6.0 * d_model * 256, "batch_tokens": batch, "steps": steps}
    row |= {"tokens": float(steps * batch), "flops": 6.0 * params * steps * batch, "optimizer": "adamw", "lr": lr}
    row |= {"beta2": 0.95, "weight_decay": 0.0, "schedule": "constant", "schedule_steps": steps, "warmup_tokens": 0.0}
    row |= {"weight_average": 0.1, "precision": "fp32", "seed": seed, "status": "done", "test_loss": loss}
    row |= {"test_loss_se": 0.01, "unique_tokens": 1e12, "epochs": steps * batch / 1e12, "bytes_per_token": 1.0}
    row |= {"data_name": "synthetic", "data_hash": "synthetic", "wall_s": steps * batch / 2e5, "tokens_per_s": 2e5}
    row |= {"mfu": None, "device": "cpu"}
    return row


def curve_rows(row: dict[str, object], at: np.ndarray, loss: np.ndarray) -> pd.DataFrame:
    """The evaluations of the run `row` after `at` steps."""
    tokens = at * float(row["batch_tokens"])  # type: ignore[arg-type]
    return pd.DataFrame(
        {
            "run_id": row["run_id"],
            "step": at.astype(int),
            "tokens": tokens,
            "flops": tokens * float(row["flops_per_token"]),  # type: ignore[arg-type]
            "train_loss": loss,
            "test_loss": loss,
            "test_loss_se": 0.01,
            "lr": row["lr"],
            "grad_norm": 1.0,
            "elapsed_s": tokens / 2e5,
        }
    )

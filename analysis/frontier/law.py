"""The frontier of any table of training curves: raw, and adjusted where B_crit is known."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.frontier.curves import LAW, SizeCurve, by_size, read_runs
from analysis.frontier.kind import Method, fit_kind
from analysis.outcome import Outcome, Warnings, plain
from analysis.tables.arrays import positive
from analysis.tables.sizes import LEAST_SIZES
from sweep.schema import InputError

INTERVAL = (
    "curves simulated around a smooth valley with the noise of its residuals, its variance redrawn by chi-square, the "
    "procedure repeated on each; basic (pivotal) percentiles, which allow for its bias"
)


@dataclass(frozen=True)
class FrontierOutcome(Outcome):
    """The raw envelope. points: rows of the table in its curves. frames: "points", the readings that the valley was
    fitted to, and "optima", one row a compute value. method, other: how the lines were drawn, and their values by the
    other method. grid_bias: of the exponents, what the grid of sizes does without any noise. adjusted: the same against
    C_min, where B_crit is known."""

    method: str = "surface"
    other: dict[str, float] = field(default_factory=dict)
    grid_bias: dict[str, float] = field(default_factory=dict)
    adjusted: FrontierOutcome | None = None

    def to_json(self) -> dict[str, Any]:
        """Of an outcome; with an adjusted envelope both are under "kinds"."""
        out = super().to_json() | {"method": self.method, "grid_bias": plain(self.grid_bias)}
        out["surface" if self.method == "envelope" else "envelope"] = plain(self.other)
        if self.adjusted is not None:
            kinds = {"raw": replace(self, adjusted=None), "adjusted": self.adjusted}
            keys = ("estimates", "draws", "span", "optima", "grid_bias", "surface", "envelope")
            full = {name: kind.to_json() for name, kind in kinds.items()}
            out["kinds"] = {name: {key: kind[key] for key in keys if key in kind} for name, kind in full.items()}
        return out


def fit(
    params: npt.ArrayLike,
    tokens: npt.ArrayLike,
    loss: npt.ArrayLike,
    *,
    run: npt.ArrayLike | None = None,
    flops: npt.ArrayLike | None = None,
    batch_tokens: npt.ArrayLike | None = None,
    warmup_tokens: npt.ArrayLike | None = None,
    b_crit: tuple[float, float] | None = None,
    method: Method = "surface",
    bootstrap: int = 0,
    seed: int = 0,
) -> FrontierOutcome:
    """N_opt(C) and D_opt(C) from training curves, one row an evaluation; `analysis.frontier` says how.

    params: N [n]. tokens: D so far [n]. loss: nats per token [n]. run: labels [n]; without, rows of equal N (and batch)
    are one run. flops: C so far [n], 6 N D without. batch_tokens: B [n]. warmup_tokens: of each row's run [n] or one
    for all; what lies within is left out. b_crit: (B_star in tokens, alpha_B) of B_crit = B_star L^(-1/alpha_B); with
    it and batch_tokens the adjusted envelope is fitted too. bootstrap: simulated envelopes behind the intervals (0:
    none).

    Raises InputError where values are not positive numbers, a run has several sizes or batches, there are fewer than
    four sizes, or no three of them cover a compute together.
    """
    began = time.perf_counter()
    if method not in ("surface", "envelope"):
        raise InputError(f"{LAW}: method {method!r} is not known; use surface or envelope")
    columns = positive(LAW, params=params, tokens=tokens, loss=loss, flops=flops, batch_tokens=batch_tokens)
    columns.setdefault("flops", 6 * columns["params"] * columns["tokens"])
    warnings = Warnings()
    runs = read_runs(columns, _labels(columns, run), _warmup(columns, warmup_tokens), warnings)
    if len({r.params for r in runs}) < LEAST_SIZES:
        raise InputError(
            f"{LAW}: {len({r.params for r in runs})} model sizes with curves do not determine N(C); give at least "
            f"{LEAST_SIZES}, each with two evaluations or more"
        )
    batches = {r.batch for r in runs}
    common = batches.pop() if len(batches) == 1 and "batch_tokens" in columns else None
    if "batch_tokens" in columns and common is None:
        warnings.add(
            LAW, "mixed_batches", "raw: runs of several batch sizes are compared at equal C; give one batch size, or "
            "b_crit for the adjusted envelope"
        )  # fmt: skip
    if method == "envelope" and bootstrap:
        warnings.add(
            LAW, "narrow_intervals", "nominal 90% intervals of lines straight through the envelope held the truth in "
            "85% to 89% of simulated tables (the loss's in 72% to 90%); those of the surface in 86% to 95%"
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    raw = _outcome("raw", by_size(runs, None), common, None, method, bootstrap, rng, warnings)
    adjusted = None
    if b_crit is not None:
        law = _law(b_crit, columns)
        adjusted = _outcome("adjusted", by_size(runs, law), None, law, method, bootstrap, rng, warnings)
    used = sum(r.rows for r in runs)
    if adjusted is not None:
        adjusted = replace(adjusted, points=used)
    return replace(raw, points=used, adjusted=adjusted, seconds=time.perf_counter() - began)


def _outcome(
    name: str,
    sizes: Sequence[SizeCurve],
    batch: float | None,
    law: tuple[float, float] | None,
    method: Method,
    bootstrap: int,
    rng: np.random.Generator,
    warnings: Warnings,
) -> FrontierOutcome:
    kind = fit_kind(name, sizes, batch, law, method, bootstrap, rng, warnings)
    if kind.failed:
        warnings.add(
            LAW, "replicates_failed", f"{name}: {kind.failed} of {bootstrap} simulated envelopes have no line and do "
            "not enter the intervals"
        )  # fmt: skip
    return FrontierOutcome(
        law=LAW,
        estimates=kind.estimates,
        points=len(kind.points),
        objective=kind.objective,
        draws=kind.draws,
        bootstrap=bootstrap,
        interval=INTERVAL if kind.draws else "none",
        span=kind.span,
        frames={"points": kind.points, "optima": kind.optima},
        warnings=warnings,
        method=method,
        other=kind.other,
        grid_bias=kind.grid_bias,
    )


def _labels(columns: Mapping[str, np.ndarray], run: npt.ArrayLike | None) -> np.ndarray:
    if run is not None:
        labels = np.asarray(run).astype(str)
        if len(labels) != len(columns["params"]):
            raise InputError(
                f"{LAW}: columns of different lengths (run {len(labels)}, params {len(columns['params'])})"
            )
        return labels
    keys = [columns[name] for name in ("params", "batch_tokens") if name in columns]
    return np.array(["x".join(f"{v:.17g}" for v in row) for row in zip(*keys, strict=True)])


def _warmup(columns: Mapping[str, np.ndarray], warmup: npt.ArrayLike | None) -> np.ndarray:
    values = np.broadcast_to(np.asarray(0.0 if warmup is None else warmup, dtype=float), columns["params"].shape)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise InputError(f"{LAW}: warmup_tokens must be numbers from 0 on; correct or remove the others")
    return values


def _law(b_crit: tuple[float, float], columns: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(intercept, slope) of ln B_crit against ln L."""
    star, alpha = b_crit
    if not (star > 0 and alpha > 0):
        raise InputError(f"{LAW}: b_crit must be (B_star, alpha_B), both positive, not {b_crit}")
    if "batch_tokens" not in columns:
        raise InputError(f"{LAW}: the adjusted envelope needs the batch of every run; give batch_tokens")
    return math.log(star), -1 / alpha

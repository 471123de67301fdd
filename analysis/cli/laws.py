"""The laws of `isoloss fit`: what each takes from a table, its own flags, and the call that fits it.

Nothing heavy is imported before a law is fitted, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.cli import flags

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from analysis.outcome import Outcome
    from analysis.tables.columns import Needs

Flags = Callable[[argparse.ArgumentParser], None]
Fit = Callable[["pd.DataFrame", argparse.Namespace, dict[str, Any]], "Outcome"]


@dataclass(frozen=True)
class Law:
    """One law. says, example: for --help. columns, optional: positive numbers it needs and may use; labels: columns it
    takes as they are. fit: from the table's rows, the flags and the keywords common to all laws. robust: its losses may
    be other than squared, `default_loss` unless asked. weights: it takes them. highest: it can be told to leave out the
    highest losses."""

    name: str
    says: str
    example: str
    columns: tuple[str, ...]
    fit: Fit
    optional: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    flags: Flags | None = None
    robust: bool = False
    default_loss: str = "squared"
    weights: bool = True
    highest: bool = True

    def needs(self, arguments: argparse.Namespace) -> Needs:
        """What the law takes from the table under these flags."""
        from analysis.tables.columns import Needs

        columns, highest = self.columns, "loss" if self.highest else None
        if self.name == "power-law":
            columns, highest = (arguments.x, arguments.y), arguments.y
        elif getattr(arguments, "critical_batch", None):
            columns = {
                "kaplan-ns": ("params", "steps", "batch_tokens", "loss"),
                "frontier": (*columns, "batch_tokens"),
            }[self.name]
        return Needs(
            self.name, columns, self.optional, self.labels, highest, self.weights,
            constant=("flops", "steps", "batch_tokens") if self.name in _MAY_BE_CONSTANT else (),
            curves=self.name == "frontier",
        )  # fmt: skip


_MAY_BE_CONSTANT = ("isoflop", "kaplan-ns", "frontier")


def array(frame: pd.DataFrame, name: str) -> np.ndarray | None:
    """A column [n], None where the table has none."""
    return frame[name].to_numpy() if name in frame else None


def _columns(frame: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [frame[name].to_numpy(dtype=float) for name in names]


def _fit_power_law(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import power_law

    x, y = _columns(frame, arguments.x, arguments.y)
    options = _robust(arguments, "loss") | {"weights": array(frame, "weight"), "offset": arguments.offset}
    return power_law.fit(x, y, **options, **common)


def _fit_critical_batch(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import critical_batch

    batch, steps = _columns(frame, "batch_tokens", "steps")
    group = None if arguments.by is None else frame[arguments.by].to_numpy()
    options = common | {"group": group, "optimal_batch": arguments.optimal_batch}
    return critical_batch.fit(batch, steps, array(frame, "target_loss"), **options)


def _fit_isoflop(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import isoflop

    params, loss, flops = _columns(frame, "params", "loss", "flops")
    options = _resampling(common) | {"method": arguments.method or "parabola", "noise": arguments.noise}
    return isoflop.fit(params, loss, flops, tokens=array(frame, "tokens"), weights=array(frame, "weight"), **options)


def _fit_frontier(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import frontier

    params, tokens, loss = _columns(frame, "params", "tokens", "loss")
    options: dict[str, Any] = {name: array(frame, name) for name in ("run", "flops", "batch_tokens", "warmup_tokens")}
    options |= {"b_crit": arguments.critical_batch, "method": arguments.method or "surface"}
    return frontier.fit(params, tokens, loss, **options, **_resampling(common))


def _fit_parametric(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import parametric

    params, tokens, loss = _columns(frame, "params", "tokens", "loss")
    options = _robust(arguments) | _resampled(frame) | {"offset": not arguments.no_offset}
    return parametric.fit(params, tokens, loss, **options, **common)


def _fit_kaplan(name: str, *columns: str, run: bool = False) -> Fit:
    """One of Kaplan's laws of the loss."""

    def fit(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
        from analysis import kaplan_loss

        options = _robust(arguments) | (_resampled(frame) if run else {"weights": array(frame, "weight")})
        found: Outcome = getattr(kaplan_loss, name)(*_columns(frame, *columns, "loss"), **options, **common)
        return found

    return fit


def _fit_kaplan_ns(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import kaplan

    params, loss = _columns(frame, "params", "loss")
    if arguments.critical_batch:
        b_crit = kaplan.critical_batch(loss, *arguments.critical_batch)
        steps, batch = _columns(frame, "steps", "batch_tokens")
        least = kaplan.steps_min(steps, batch, b_crit)
    else:
        (least,) = _columns(frame, "steps_min")
    return kaplan.fit(params, least, loss, **_robust(arguments), **_resampled(frame), **common)


def _fit_repeated(frame: pd.DataFrame, arguments: argparse.Namespace, common: dict[str, Any]) -> Outcome:
    from analysis import published, repeated

    params, tokens, unique_tokens, loss = _columns(frame, "params", "tokens", "unique_tokens", "loss")
    constants = dict(zip(("A", "B", "E", "alpha", "beta"), arguments.base or (), strict=False))
    base = published.Parametric(**constants, source="--base") if constants else None
    options = _robust(arguments) | _resampled(frame) | {"base": base}
    return repeated.fit(params, tokens, unique_tokens, loss, **options, **common)


def _resampling(common: dict[str, Any]) -> dict[str, Any]:
    """Of the common keywords those of laws that are no batch of fits."""
    return {name: value for name, value in common.items() if name != "device"}


def _robust(arguments: argparse.Namespace, keyword: str = "kind") -> dict[str, Any]:
    return {keyword: arguments.loss, "delta": arguments.delta}


def _resampled(frame: pd.DataFrame) -> dict[str, Any]:
    return {"weights": array(frame, "weight"), "run": array(frame, "run")}


LAWS = {
    law.name: law
    for law in (
        Law(
            "power-law", "y = coefficient x^exponent (+ offset)", "power-law runs.csv --x flops --y loss --offset",
            (), _fit_power_law, flags=flags.power_law, robust=True,
        ),
        Law(
            "critical-batch",
            "S = S_min + E_min/B at each target loss, B_crit = E_min/S_min, and B_crit = B_star/L^(1/alpha_B);\n"
            "columns batch_tokens, steps and, for more than one, target_loss",
            "critical-batch steps.csv --by model --bootstrap 1000",
            ("batch_tokens", "steps"), _fit_critical_batch, optional=("target_loss",), flags=flags.critical_batch,
            weights=False, highest=False,
        ),
        Law(
            "isoflop", "N_opt and D_opt at each compute, and their power laws (Hoffmann et al. 2022, approach 2);\n"
            "columns loss and two of params, tokens, flops", "isoflop runs.csv --bootstrap 500",
            ("params", "flops", "loss"), _fit_isoflop, optional=("tokens",), flags=flags.isoflop,
        ),
        Law(
            "frontier", "lower envelope of training curves (Hoffmann et al. 2022, approach 1);\n"
            "columns run, params, tokens, loss, one row an evaluation", "frontier curves.csv --bootstrap 200",
            ("params", "tokens", "loss"), _fit_frontier, optional=("batch_tokens",),
            labels=("run", "warmup_tokens"), flags=flags.frontier, weights=False,
        ),
        Law(
            "parametric", "L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3);\n"
            "columns loss and two of params, tokens, flops",
            'parametric runs.csv --drop-highest 5 --bootstrap 4000 --json parametric.json',
            ("params", "tokens", "loss"), _fit_parametric, labels=("run",), flags=flags.parametric, robust=True,
            default_loss="huber",
        ),
        Law(
            "kaplan-n", "L(N) = (N_c/N)^alpha_N (Kaplan et al. 2020, Eq. 1.1); columns params, loss",
            "kaplan-n runs.csv --bootstrap 1000", ("params", "loss"), _fit_kaplan("fit_params", "params"), robust=True,
        ),
        Law(
            "kaplan-d", "L(D) = (D_c/D)^alpha_D (Kaplan et al. 2020, Eq. 1.2); columns tokens, loss",
            "kaplan-d runs.csv --bootstrap 1000", ("tokens", "loss"), _fit_kaplan("fit_tokens", "tokens"), robust=True,
        ),
        Law(
            "kaplan-c", "L(C) = (C_c/C)^alpha_C (Kaplan et al. 2020, Eq. 1.3); columns flops, loss",
            "kaplan-c runs.csv --bootstrap 1000", ("flops", "loss"), _fit_kaplan("fit_flops", "flops"), robust=True,
        ),
        Law(
            "kaplan-nd", "L(N, D) (Kaplan et al. 2020, Eq. 1.5); columns params, tokens, loss",
            "kaplan-nd runs.csv --bootstrap 1000", ("params", "tokens", "loss"),
            _fit_kaplan("fit_params_tokens", "params", "tokens", run=True), labels=("run",), robust=True,
        ),
        Law(
            "kaplan-ns", "L(N, S_min) (Kaplan et al. 2020, Eq. 5.6); columns params, steps_min, loss",
            "kaplan-ns curves.csv --critical-batch 2.1e8 0.21 --bootstrap 200", ("params", "steps_min", "loss"),
            _fit_kaplan_ns, labels=("run",), flags=flags.kaplan_ns, robust=True,
        ),
        Law(
            "repeated", "repeated data (Muennighoff et al. 2023); columns params, tokens, unique_tokens, loss",
            "repeated runs.csv --bootstrap 1000", ("params", "tokens", "unique_tokens", "loss"), _fit_repeated,
            labels=("run",), flags=flags.repeated, robust=True, default_loss="huber",
        ),
    )
}  # fmt: skip

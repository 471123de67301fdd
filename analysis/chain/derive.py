"""The whole chain: from the run table to every law, with intervals and warnings.

    from analysis.chain.derive import derive
    from analysis.tables.table import load
    laws = derive(load(Path("sweeps/quick")))

Each law is derived on the runs and again on simulated replicates of them (`analysis.uncertainty.bootstrap`); a law
that the table cannot support is left out with a warning that says what is missing.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis import parametric
from analysis.chain.adjusted import Adjusted
from analysis.chain.checks import warn_coverage, warn_laws, warn_sizes, warn_table
from analysis.chain.conventions import derive_conventions
from analysis.chain.critical import derive_critical
from analysis.chain.diagnose import diagnose_laws
from analysis.chain.frontier import derive_frontier
from analysis.chain.grid_bias import without_grid_bias
from analysis.chain.isoflop import derive_isoflop, derive_isoflop_decayed
from analysis.chain.kaplan_loss import derive_kaplan
from analysis.chain.limited_data import derive_data_laws
from analysis.chain.parametric import derive_parametric
from analysis.chain.results import Frontier, Isoflop, Laws, Surface
from analysis.chain.surfaces import derive_slices, derive_surface, lines_of_slices
from analysis.critical_batch import tuning_scatter
from analysis.isoflop import decayed_budgets
from analysis.outcome import LEVEL, Warnings
from analysis.tables.conventions import apply
from analysis.tables.runs import Run, SeedNoise, extract, main_recipe, seed_noise
from analysis.tables.sizes import LEAST_SIZES, Size, choose_batch, make_sizes
from analysis.tables.table import Table
from analysis.uncertainty import bootstrap
from sweep.schema import InputError

REPLICATES = 200

T = TypeVar("T")


def derive(
    table: Table,
    *,
    convention: str = "kaplan",
    replicates: int = REPLICATES,
    seed: int = 0,
    device: str = "cpu",
    extras: bool = True,
) -> Laws:
    """All laws of `table`, with N and C counted as `convention` says (`analysis.tables.conventions`), and 90% intervals
    from `replicates` simulated sweeps (0: none). `device` is where the surfaces are fitted,
    with their replicates and without each run; curves are read, and single lines and laws fitted, on the CPU. Without
    `extras` the other conventions and the diagnoses are left out, which costs half the time."""
    began = time.perf_counter()
    table = apply(table, convention)
    warnings = Warnings()
    sweep = _prepare(table, replicates, seed, warnings)
    sigma, chosen, at = sweep.noise.sigma, sweep.compared, sweep.common_batch
    first = _try(warnings, "critical-batch", lambda: derive_critical(sweep.undecayed, sigma, warnings))
    critical, law = first or (None, None)
    measured = critical.measured if critical is not None else (0.0, 0.0)
    frontier, isoflop = _optimal_sizes(sweep, law, measured, warnings)
    points = sweep.for_parametric
    third = _try(warnings, "parametric", lambda: derive_parametric(*points, sigma, warnings, device, seed))
    surface, slices, slice_lines = _surface(sweep, law, measured, isoflop, warnings, device)
    kaplan = derive_kaplan(*chosen, frontier, surface, law, sigma, warnings)
    kaplan.laws.update(derive_data_laws(sweep.runs, warnings, replicates=replicates, seed=seed, device=device))
    compared = extras and not (frontier is None and isoflop is None)
    result = Laws(
        meta={},
        runs=_ends([*sweep.undecayed.runs, *sweep.decayed.runs]),
        critical=critical,
        adjusted=Adjusted(table, sweep.undecayed.runs, None if law is None else (law[0, 0], law[0, 1]), measured),
        frontier=frontier,
        isoflop=isoflop,
        parametric=third,
        surface=surface,
        slices=slices,
        slice_lines=slice_lines,
        warnings=warnings,
        level=LEVEL,
        kaplan=kaplan,
        conventions=derive_conventions(table, chosen, sweep.for_isoflop, at) if compared else None,
    )
    warn_laws(result, warnings)
    if extras:
        result.diagnostics.update(diagnose_laws(result, *chosen, at, law, measured, sigma, device))
    result.meta.update(_meta(table, convention, sweep, replicates, device, time.perf_counter() - began))
    return result


@dataclass(frozen=True)
class _Sweep:
    """Runs that may be compared, with their simulated versions, and the curve of each size. batch: what the undecayed
    sizes share. tuning: scatter of the steps between cells."""

    runs: list[Run]
    undecayed: bootstrap.Samples
    decayed: bootstrap.Samples
    open_sizes: list[Size]
    closed_sizes: list[Size]
    batch: float | None
    noise: SeedNoise
    tuning: float

    @property
    def _open(self) -> tuple[bootstrap.Samples, list[Size]]:
        return self.undecayed, self.open_sizes

    @property
    def _closed(self) -> tuple[bootstrap.Samples, list[Size]]:
        return self.decayed, self.closed_sizes

    @property
    def _prefers_open(self) -> bool:
        return len(self.open_sizes) >= LEAST_SIZES or len(self.closed_sizes) < len(self.open_sizes)

    @property
    def compared(self) -> tuple[bootstrap.Samples, list[Size]]:
        """What the frontier compares: undecayed curves where there are enough sizes, else decayed runs."""
        return self._open if self._prefers_open else self._closed

    @property
    def common_batch(self) -> float | None:
        """The batch of the frontier's sizes."""
        return self.batch if self._prefers_open else None

    @property
    def for_isoflop(self) -> tuple[bootstrap.Samples, list[Size]]:
        """Decayed runs where they make at least two budgets."""
        decayed = not self.undecayed.runs or len(decayed_budgets(self.decayed.runs)) >= 2
        return self._closed if decayed else self._open

    @property
    def for_parametric(self) -> tuple[bootstrap.Samples, list[Size]]:
        """Decayed runs where they are enough."""
        enough = len(self.decayed.runs) >= parametric.LEAST_POINTS and len(self.closed_sizes) >= parametric.LEAST_SIZES
        return self._closed if enough or not self.undecayed.runs else self._open


def _prepare(table: Table, replicates: int, seed: int, warnings: Warnings) -> _Sweep:
    rng = np.random.default_rng(seed)
    runs = extract(table)
    noise = seed_noise(runs)
    undecayed = _main([r for r in runs if not r.decayed], "undecayed", warnings)
    decayed = _main([r for r in runs if r.decayed], "decayed", warnings)
    warn_table(table, undecayed, decayed, noise, warnings)
    tuning = tuning_scatter(undecayed, noise.sigma)
    batch = choose_batch(undecayed)
    sweep = _Sweep(
        runs,
        bootstrap.simulate(undecayed, noise, tuning, replicates, rng),
        bootstrap.simulate(decayed, noise, tuning, replicates, rng),
        make_sizes(undecayed, batch),
        make_sizes(decayed, None),
        batch,
        noise,
        tuning,
    )
    warn_sizes(undecayed, sweep.open_sizes, batch, warnings)
    warn_coverage(sweep.compared[0].runs, sweep.compared[1], warnings)
    return sweep


def _optimal_sizes(
    sweep: _Sweep, law: np.ndarray | None, measured: tuple[float, float], warnings: Warnings
) -> tuple[Frontier | None, Isoflop | None]:
    """Approaches 1 and 2, their intervals without the bias of the sweep's few sizes."""
    at, samples = sweep.common_batch, sweep.for_isoflop[0]
    frontier = _try(warnings, "frontier", lambda: derive_frontier(*sweep.compared, at, law, measured, warnings))
    if samples is sweep.decayed:
        isoflop = _try(warnings, "isoflop", lambda: derive_isoflop_decayed(samples, warnings))
    else:
        isoflop = _try(warnings, "isoflop", lambda: derive_isoflop(*sweep.for_isoflop, warnings))
    if len(sweep.compared[1]) < LEAST_SIZES:
        return frontier, isoflop
    return without_grid_bias(*sweep.compared, at, law, measured, frontier, isoflop)


def _surface(
    sweep: _Sweep,
    law: np.ndarray | None,
    measured: tuple[float, float],
    isoflop: Isoflop | None,
    warnings: Warnings,
    device: str,
) -> tuple[Surface | None, pd.DataFrame, pd.DataFrame]:
    """Kaplan's surface, and the slices with its lines through them."""
    samples, sizes, batch, sigma = sweep.undecayed, sweep.open_sizes, sweep.batch, sweep.noise.sigma
    slices = derive_slices(samples.runs, sizes, isoflop, batch)
    lines = pd.DataFrame(columns=["axis", "at", "params", "loss"])
    found = (
        None
        if law is None
        else _try(warnings, "kaplan-ns", lambda: derive_surface(samples, sizes, law, measured, sigma, warnings, device))
    )
    if found is None:
        return None, slices, lines
    surface, theta = found
    if batch is not None and law is not None:
        lines = lines_of_slices(slices, sizes, theta[0], law[0], batch)
    return surface, slices, lines


def _try(warnings: Warnings, law: str, derive_it: Callable[[], T]) -> T | None:
    """What a law needs and lacks becomes a warning, and the other laws go on."""
    try:
        return derive_it()
    except InputError as error:
        warnings.add(law, "skipped", str(error).removeprefix(f"{law}: "))
        return None


def _main(runs: Sequence[Run], kind: str, warnings: Warnings) -> list[Run]:
    chosen, others = main_recipe(runs)
    if others:
        left = len(runs) - len(chosen)
        warnings.add(
            "table", "several_recipes", f"{left} {kind} runs differ from the rest in optimiser, weight decay, schedule "
            "(or its end), precision, weight average or data and are left out; analyse them in a table of their own"
        )  # fmt: skip
    return chosen


def _ends(runs: Sequence[Run]) -> pd.DataFrame:
    rows = [(run.run_id, run.params, run.final_flops) for run in runs]
    return pd.DataFrame(rows, columns=["run_id", "params", "flops"])


def _meta(table: Table, convention: str, sweep: _Sweep, replicates: int, device: str, seconds: float) -> dict[str, Any]:
    runs, noise = table.runs, sweep.noise

    def only(name: str) -> Any:
        values = runs[name].dropna().unique().tolist()
        return values[0] if len(values) == 1 else ", ".join(map(str, values)) or None

    return {
        "data_name": only("data_name"),
        "data_hash": only("data_hash"),
        "bytes_per_token": only("bytes_per_token"),
        "convention": convention,
        "date": datetime.date.today().isoformat(),
        "runs": len(runs),
        "runs_dropped": dict(table.dropped),
        "flops_total": float((runs["flops_per_token"] * runs["tokens"]).sum()),
        "wall_s_total": float(runs["wall_s"].sum()) if runs["wall_s"].notna().all() else None,
        "sigma": noise.sigma,
        "sigma_source": "seeds" if noise.freedom else "assumed",
        "correlation": noise.correlation,
        "tuning": sweep.tuning,
        "replicates": replicates,
        "level": LEVEL,
        "device": device,
        "seconds": seconds,
    }

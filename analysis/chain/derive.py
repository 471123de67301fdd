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
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis import isoflop, parametric
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
from analysis.chain.results import Isoflop, Laws, Surface
from analysis.chain.surfaces import derive_parametric, derive_slices, derive_surface, lines_of_slices
from analysis.critical_batch import tuning_scatter
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
    from `replicates` simulated sweeps (0: none). `device` is where the parametric law is fitted. Without `extras` the
    other conventions and the diagnoses are left out, which costs half the time."""
    began = time.perf_counter()
    table = apply(table, convention)
    rng = np.random.default_rng(seed)
    warnings = Warnings()
    runs = extract(table)
    noise = seed_noise(runs)
    undecayed = _main([r for r in runs if not r.decayed], "undecayed", warnings)
    decayed = _main([r for r in runs if r.decayed], "decayed", warnings)
    warn_table(table, undecayed, decayed, noise, warnings)
    tuning = tuning_scatter(undecayed, noise.sigma)
    open_samples = bootstrap.simulate(undecayed, noise, tuning, replicates, rng)
    closed_samples = bootstrap.simulate(decayed, noise, tuning, replicates, rng)

    first = _try(warnings, "critical-batch", lambda: derive_critical(open_samples, noise.sigma, warnings))
    critical, law = first or (None, None)
    measured = critical.measured if critical is not None else (0.0, 0.0)
    batch = choose_batch(undecayed)
    sizes = make_sizes(undecayed, batch)
    closed_sizes = make_sizes(decayed, None)
    warn_sizes(undecayed, sizes, batch, warnings)

    use_open = len(sizes) >= LEAST_SIZES or len(closed_sizes) < len(sizes)
    chosen = (open_samples, sizes) if use_open else (closed_samples, closed_sizes)
    warn_coverage(chosen[0].runs, chosen[1], warnings)
    at = batch if use_open else None
    edge = _try(warnings, "frontier", lambda: derive_frontier(*chosen, at, law, measured, warnings))
    flat_on = (open_samples, sizes)
    if not undecayed or len(isoflop.decayed_budgets(decayed)) >= 2:
        flat_on = (closed_samples, closed_sizes)
        flat = _try(warnings, "isoflop", lambda: derive_isoflop_decayed(closed_samples, warnings))
    else:
        flat = _try(warnings, "isoflop", lambda: derive_isoflop(open_samples, sizes, warnings))
    if len(chosen[1]) >= LEAST_SIZES:
        edge, flat = without_grid_bias(*chosen, at, law, measured, edge, flat)
    ended = len(decayed) >= parametric.LEAST_POINTS and len(closed_sizes) >= parametric.LEAST_SIZES
    points = (closed_samples, closed_sizes) if ended or not undecayed else (open_samples, sizes)
    third = _try(warnings, "parametric", lambda: derive_parametric(*points, noise.sigma, warnings, device))
    surface, slices, slice_lines = _surface(open_samples, sizes, batch, law, measured, flat, noise.sigma, warnings)
    kaplan = derive_kaplan(*chosen, edge, surface, law, noise.sigma, warnings)
    kaplan.laws.update(derive_data_laws(runs, warnings, replicates=replicates, seed=seed, device=device))
    compared = extras and not (edge is None and flat is None)
    result = Laws(
        meta={},
        runs=_ends([*undecayed, *decayed]),
        critical=critical,
        adjusted=Adjusted(table, undecayed, None if law is None else (law[0, 0], law[0, 1]), measured),
        frontier=edge,
        isoflop=flat,
        parametric=third,
        surface=surface,
        slices=slices,
        slice_lines=slice_lines,
        warnings=warnings,
        level=LEVEL,
        kaplan=kaplan,
        conventions=derive_conventions(table, chosen, flat_on, at) if compared else None,
    )
    warn_laws(result, warnings)
    if extras:
        result.diagnostics.update(diagnose_laws(result, *chosen, at, law, measured, noise.sigma))
    result.meta.update(_meta(table, convention, noise, tuning, replicates, time.perf_counter() - began))
    return result


def _surface(
    samples: bootstrap.Samples,
    sizes: Sequence[Size],
    batch: float | None,
    law: np.ndarray | None,
    measured: tuple[float, float],
    flat: Isoflop | None,
    sigma: float,
    warnings: Warnings,
) -> tuple[Surface | None, pd.DataFrame, pd.DataFrame]:
    """Kaplan's surface, and the slices with its lines through them."""
    slices = derive_slices(samples.runs, sizes, flat, batch)
    lines = pd.DataFrame(columns=["axis", "at", "params", "loss"])
    found = (
        None
        if law is None
        else _try(warnings, "kaplan-ns", lambda: derive_surface(samples, sizes, law, measured, sigma, warnings))
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


def _meta(
    table: Table, convention: str, noise: SeedNoise, tuning: float, replicates: int, seconds: float
) -> dict[str, Any]:
    runs = table.runs

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
        "tuning": tuning,
        "replicates": replicates,
        "level": LEVEL,
        "seconds": seconds,
    }

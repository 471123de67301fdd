"""One sweep under all conventions: how much of an exponent is what is counted.

The same runs, with the same simulated losses, once for each way to count N and C (`analysis.tables.conventions`), so
that nothing else differs. This is what separates Kaplan's exponent from Chinchilla's (Porian et al. 2024; Pearce & Song
2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import published as pub
from analysis.chain.frontier import EVERYWHERE, derive_frontier
from analysis.chain.grid_bias import without_grid_bias
from analysis.chain.isoflop import derive_isoflop, derive_isoflop_decayed
from analysis.chain.results import Conventions
from analysis.critical_batch import tuning_scatter
from analysis.isoflop import decayed_budgets
from analysis.outcome import Estimate, Warnings
from analysis.tables.conventions import CONVENTIONS, DEFINITIONS, count
from analysis.tables.runs import Run, extract, main_recipe, seed_noise
from analysis.tables.sizes import LEAST_SIZES, Size, choose_batch, make_sizes
from analysis.tables.table import Table
from analysis.uncertainty.bootstrap import Samples, simulate
from sweep.schema import InputError

LAWS = ("frontier", "isoflop")
NAMES = ("a", "b", "N_coefficient", "D_coefficient")
COLUMNS = ["law", "convention", "definition", *(f"{n}{end}" for n in NAMES for end in ("", "_low", "_high")), "note"]


def compare(table: Table, law: str, *, bootstrap: int = 0, seed: int = 0) -> pd.DataFrame:
    """The rows of `law`, "frontier" (raw, at a fixed batch) or "isoflop", under every convention, with 90% intervals
    from `bootstrap` simulated sweeps (0: none). Raises InputError for another law, and where the table supports the law
    under no convention."""
    if law not in LAWS:
        raise InputError(f"{law} has no comparison of conventions; use frontier or isoflop")
    runs = extract(table)
    noise, rng = seed_noise(runs), np.random.default_rng(seed)
    undecayed, decayed = (main_recipe([r for r in runs if r.decayed == which])[0] for which in (False, True))
    tuning = tuning_scatter(undecayed, noise.sigma)
    samples = [simulate(own, noise, tuning, bootstrap, rng) for own in (undecayed, decayed)]
    batch = choose_batch(undecayed)
    sizes = [make_sizes(undecayed, batch), make_sizes(decayed, None)]
    use_open = len(sizes[0]) >= LEAST_SIZES or len(sizes[1]) < len(sizes[0])
    shared = not undecayed or len(decayed_budgets(decayed)) >= 2
    chosen = int(shared) if law == "isoflop" else int(not use_open)
    rows = compare_on(table, law, samples[chosen], sizes[chosen], batch if chosen == 0 else None)
    if rows["a"].isna().all():
        raise InputError(f"{table.source}: {law}: {rows['note'].iloc[0]}")
    return rows


def derive_conventions(
    table: Table,
    of_frontier: tuple[Samples, Sequence[Size]],
    of_isoflop: tuple[Samples, Sequence[Size]],
    batch: float | None,
) -> Conventions:
    """Both laws under every convention, each on the samples and sizes it is derived from. batch: that of the frontier's
    sizes."""
    rows = [compare_on(table, "frontier", *of_frontier, batch), compare_on(table, "isoflop", *of_isoflop, batch)]
    return Conventions(pd.concat(rows, ignore_index=True), published())


def compare_on(table: Table, law: str, samples: Samples, sizes: Sequence[Size], batch: float | None) -> pd.DataFrame:
    """The rows of one law on runs and sizes that are chosen already, whatever convention these are counted in. A
    convention that the table or the sweep does not support has a note instead of numbers."""
    rows = []
    for convention in CONVENTIONS:
        try:
            found = _estimates(law, *_recount(table, convention, samples, sizes), batch)
            note = "" if found else "no line: fewer than two compute values have their best size between others"
        except InputError as error:
            found, note = {}, str(error).removeprefix(f"{law}: ")
        row: list[Any] = [law, convention, DEFINITIONS[convention]]
        for name in NAMES:
            e = found.get(name, Estimate(np.nan))
            row += [e.value, e.low, e.high]
        rows.append([*row, note])
    return pd.DataFrame(rows, columns=COLUMNS).astype({c: float for c in COLUMNS[3:-1]})


def published() -> pd.DataFrame:
    """Printed exponents a of N_opt(C) by the convention they were counted in."""
    kaplan, head = pub.STEPS[0], pub.STEPS[1]
    rows: list[tuple[str, str, float, float | None, float | None]] = [
        ("kaplan", "Kaplan et al. 2020, fixed batch (Fig. 14)", pub.N_FIXED_BATCH.exponent, None, None),
        ("kaplan", "Kaplan et al. 2020, C_min (Table 6)", pub.N_OPT.exponent, None, None),
        ("kaplan", f"Porian et al. 2024, {kaplan.name}", *_ends(kaplan.refinedweb)),
        ("with_head", f"Porian et al. 2024, {head.name}", *_ends(head.refinedweb)),
        ("total", "Pearce & Song 2024, own runs", pub.OWN_RUNS_EXPONENT["total"], None, None),
    ]
    for approach, exponents in pub.EXPONENTS.items():
        rows.append(("chinchilla", f"Hoffmann et al. 2022, approach {approach}", *_ends(exponents.a)))
    return pd.DataFrame(rows, columns=["convention", "source", "a", "a_low", "a_high"]).astype(
        {"a": float, "a_low": float, "a_high": float}
    )


def _ends(interval: pub.Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _recount(table: Table, convention: str, samples: Samples, sizes: Sequence[Size]) -> tuple[Samples, list[Size]]:
    """Runs and sizes with N and the FLOPs per token of `convention`."""
    params, per_token = count(table.runs, convention, table.source)
    counted = dict(zip(table.runs["run_id"].astype(str), zip(params, per_token, strict=True), strict=True))

    def run_of(run: Run) -> Run:
        n, k = counted[run.run_id]
        return replace(run, params=float(n), flops_per_token=float(k))

    runs = [run_of(run) for run in samples.runs]
    again = [
        replace(size, params=runs[size.members[0]].params, flops_per_token=runs[size.members[0]].flops_per_token)
        for size in sizes
    ]
    return samples.of(runs), sorted(again, key=lambda size: size.params)


def _estimates(law: str, samples: Samples, sizes: Sequence[Size], batch: float | None) -> dict[str, Estimate]:
    """Empty where the law finds no line."""
    quiet = Warnings()
    if law == "frontier":
        first = derive_frontier(samples, sizes, batch, None, EVERYWHERE, quiet)
        edge, _ = without_grid_bias(samples, sizes, batch, None, EVERYWHERE, first, None)
        if edge is None or "raw" not in edge.fits:
            return {}
        n, d = edge.fits["raw"]["N"], edge.fits["raw"]["D"]
        return {"a": n.exponent, "b": d.exponent, "N_coefficient": n.coefficient, "D_coefficient": d.coefficient}
    # Runs that end at one 6 N D do not end at one C of another convention: then the sizes' final losses, joined over
    # their horizons, are read at equal C.
    if samples.runs[0].decayed and len(decayed_budgets(samples.runs)) >= 2:
        flat = derive_isoflop_decayed(samples, quiet)
    else:
        flat = derive_isoflop(samples, sizes, quiet)
    _, moved = without_grid_bias(samples, sizes, batch, None, EVERYWHERE, None, flat)
    return {} if moved is None or moved.fit is None else {name: moved.fit[name] for name in NAMES}

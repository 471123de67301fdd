"""What a referee would ask of a sweep: each fault raises its own warning, and a sound sweep few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.chain.checks import warn_coverage, warn_table
from analysis.outcome import Warnings
from analysis.tables.runs import SeedNoise, extract, seed_noise
from analysis.tables.sizes import choose_batch, make_sizes
from analysis.tables.table import Table
from analysis.uncertainty.simulate import synthetic_sweep

ONE_BATCH = {(2, width): (16,) for width in (8, 12, 16, 20, 24, 32, 40, 48)}


def sweep(**options: object) -> Table:
    return synthetic_sweep(cells=ONE_BATCH, tokens=1e6, points_per_decade=4, **options)  # type: ignore[arg-type]


def of_table(table: Table, noise: SeedNoise | None = None) -> Warnings:
    warnings, runs = Warnings(), extract(table)
    warn_table(table, runs, [], noise or seed_noise(runs), warnings)
    return warnings


def of_sizes(table: Table) -> Warnings:
    warnings, runs = Warnings(), extract(table)
    warn_coverage(runs, make_sizes(runs, choose_batch(runs)), warnings)
    return warnings


def message(warnings: Warnings, code: str) -> str:
    return next(w["message"] for w in warnings if w["code"] == code)


def codes(warnings: Warnings) -> set[str]:
    return {w["code"] for w in warnings}


def test_a_sound_table_has_no_warning() -> None:
    assert of_table(sweep(), SeedNoise(0.004, 1.0, 8)) == []


def test_few_repeats_say_how_well_the_noise_is_known() -> None:
    found = of_table(sweep(), SeedNoise(0.004, 1.0, 2))
    assert codes(found) == {"few_seeds"}
    assert "2 degrees of freedom" in message(found, "few_seeds")
    assert "±50%" in message(found, "few_seeds")
    assert codes(of_table(sweep(seeds={}))) == {"no_seeds"}


def test_warm_ups_that_are_long_or_longer_than_the_run() -> None:
    table = sweep()
    tokens = table.runs["tokens"].astype(float)
    runs = table.runs.assign(warmup_tokens=np.where(np.arange(len(tokens)) < 2, 0.4, 0.1) * tokens)
    runs.loc[5, "warmup_tokens"] = 2 * tokens[5]
    found = of_table(replace(table, runs=runs), SeedNoise(0.004, 1.0, 8))
    assert codes(found) == {"long_warmup", "inside_warmup"}
    assert ", ".join(runs["run_id"][:2]) in message(found, "long_warmup")
    assert "(up to 40%)" in message(found, "long_warmup")
    assert f"run {runs['run_id'][5]} is over" in message(found, "inside_warmup")


def test_a_small_test_set_and_runs_that_did_not_end() -> None:
    table = sweep()
    runs = table.runs.assign(test_loss_se=0.02 * table.runs["test_loss"])
    dropped = {"x": "failed", **{f"r{i}": "diverged" for i in range(7)}}
    found = of_table(replace(table, runs=runs, dropped=dropped), SeedNoise(0.004, 1.0, 8))
    assert codes(found) == {"small_test_set", "not_done"}
    assert "2.0%" in message(found, "small_test_set")
    assert [w["message"] for w in found if w["code"] == "not_done"] == [
        "run x is failed and not used",
        "7 runs (r0, r1, r2, r3, r4, ...) are diverged and not used",
    ]


def test_eight_sizes_over_a_decade_with_a_tuned_rate_are_enough() -> None:
    found = of_sizes(sweep(lr_factors=(0.5, 1.0, 2.0), sigma=0.0))
    assert codes(found) == {"extrapolation"}
    assert "3e+21" in message(found, "extrapolation")


def test_one_rate_and_rates_at_the_edge_of_their_axis() -> None:
    assert message(of_sizes(sweep()), "one_rate").startswith("every size was run at one learning rate")
    table = sweep(lr_factors=(0.25, 0.5, 1.0), sigma=0.0)
    found = of_sizes(table)
    assert codes(found) == {"extrapolation", "lr_at_edge"}
    assert message(found, "lr_at_edge").startswith("at 8 sizes (2x8, 2x12, ")
    keep = (table.runs["d_model"] > 8) | table.runs["run_id"].str.contains("-1-")
    runs = table.runs[keep].reset_index(drop=True)
    curves = table.curves[table.curves["run_id"].astype(str).isin(runs["run_id"])].reset_index(drop=True)
    assert message(of_sizes(replace(table, runs=runs, curves=curves)), "one_rate").startswith("size 2x8 was run")


def test_few_sizes_and_little_compute() -> None:
    table = synthetic_sweep(cells={(2, 16): (16,), (2, 20): (16,), (2, 24): (16,)}, tokens=1e6, points_per_decade=4)
    tokens = table.curves["tokens"].astype(float)
    last = tokens.groupby(table.curves["run_id"].astype(str)).transform("max")
    late = replace(table, curves=pd.DataFrame(table.curves[tokens > 0.5 * last]).reset_index(drop=True))
    found = of_sizes(late)
    assert codes(found) == {"few_sizes", "narrow_sizes", "narrow_compute", "extrapolation", "one_rate"}
    assert message(found, "few_sizes").startswith("3 model sizes over 0.4 decades of N")


def test_the_points_of_the_laws_are_looked_at(poor: object, full: object) -> None:
    found = {(w["law"], w["code"]) for w in full.laws.warnings}  # type: ignore[attr-defined]
    assert {("frontier", "few_sizes"), ("frontier", "extrapolation"), ("isoflop", "wide_parabola")} <= found
    assert ("frontier", "few_sizes") in {(w["law"], w["code"]) for w in poor.laws.warnings}  # type: ignore[attr-defined]

"""Points that cannot support a law are named, and the public points of Hoffmann's figure 4 are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.outcome import Warnings
from analysis.tables.coverage import OF_BOTH, OF_COMPUTE, OF_SIZE, warn_parabolas, warn_points

PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "chinchilla_points.csv"
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 10), np.geomspace(5e9, 1e11, 4)))


def codes(frame: pd.DataFrame, law: str) -> set[str]:
    warnings = Warnings()
    warn_points(frame, law, warnings)
    assert all(w["law"] == law for w in warnings)
    return {w["code"] for w in warnings}


def table(params: np.ndarray = N, tokens: np.ndarray = D, **columns: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": 6 * params * tokens, "loss": 3.0, **columns})


@pytest.mark.parametrize("law", sorted({*OF_SIZE, *OF_BOTH, *OF_COMPUTE, "power-law", "critical-batch"}))
def test_a_wide_table_supports_every_law(law: str) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(N))
    assert codes(table(residual=noise, unique_tokens=np.full(len(N), 1e11)), law) == set()


def test_few_sizes_over_a_short_range() -> None:
    params = np.tile(np.geomspace(1e7, 8e7, 5), 4)
    assert codes(table(params, np.repeat([1e9, 4e9, 2e10, 1e11], 5)), "parametric") == {"few_sizes", "narrow_sizes"}
    assert codes(table(params, np.repeat([1e9, 4e9, 2e10, 1e11], 5)), "kaplan-d") == set()


def test_compute_within_a_decade() -> None:
    assert codes(table(tokens=1e17 * np.tile([1, 1.5, 2, 4], 10) / N), "isoflop") == {"narrow_compute"}


@pytest.mark.parametrize("tokens", [20 * N, N**2 / 1e6, 20 * N * np.tile([1, 1.5, 2, 3], 10)])
def test_size_and_data_that_grow_together(tokens: np.ndarray) -> None:
    assert codes(table(tokens=tokens), "parametric") == {"collinear"}


def test_data_that_are_repeated() -> None:
    frame = table(unique_tokens=D / np.where(N > 5e8, 6.0, 1.0))
    warnings = Warnings()
    warn_points(frame, "parametric", warnings)
    assert [w["code"] for w in warnings] == ["many_epochs"]
    assert warnings[0]["message"].startswith(
        f"{(N > 5e8).sum()} points pass over the text more than 4 times (up to 6.0)"
    )
    assert codes(frame, "repeated") == set()


def test_decayed_and_undecayed_runs_together() -> None:
    schedule = np.where(N > 5e8, "cosine", "constant")
    assert codes(table(schedule=schedule), "kaplan-d") == {"mixed_schedules"}
    assert codes(table(schedule=np.full(len(N), "cosine")), "kaplan-d") == set()


def test_undertrained_points_far_above_the_law() -> None:
    residual = 0.005 * np.random.default_rng(1).standard_normal(len(N) + 2)
    residual[-2:] = 0.2, 0.1
    frame = table(np.append(N, [1e9, 1e9]), np.append(D, [2e8, 9e8]), residual=residual)
    warnings = Warnings()
    warn_points(frame, "parametric", warnings)
    assert [w["code"] for w in warnings] == ["undertrained"]
    assert "2 points with fewer tokens than parameters (D/N 0.2 to 0.9) lie up to 22% above" in warnings[0]["message"]
    assert (
        codes(frame.assign(tokens=frame["params"] * 2 * frame["tokens"] / frame["tokens"].min()), "parametric") == set()
    )


def test_points_on_the_law_pull_on_nothing() -> None:
    residual = np.append(1e-15 * np.random.default_rng(1).standard_normal(len(N)), [1e-12, 5e-4])
    assert codes(table(np.append(N, [1e9, 1e9]), np.append(D, [2e8, 9e8]), residual=residual), "parametric") == set()


def test_the_public_points() -> None:
    if not PUBLIC.is_file():
        pytest.skip("the public points are not here")
    frame = pd.read_csv(PUBLIC)
    law = 1.8172 + 477.8 * frame["params"] ** -0.3473 + 2143.4 * frame["tokens"] ** -0.36717
    frame["residual"] = np.log(frame["loss"] / law)
    assert codes(frame, "parametric") == {"undertrained"}
    assert codes(frame[frame["tokens"] > frame["params"]], "parametric") == set()


def test_parabolas_across_too_many_sizes() -> None:
    optima = pd.DataFrame({"fit_low": [1e6, 1e6, 1e6], "fit_high": [1.6e7, 4e7, 9e9], "used": [True, True, False]})
    warnings = Warnings()
    warn_parabolas(optima, "isoflop", warnings)
    assert [w["code"] for w in warnings] == ["wide_parabola"]
    assert warnings[0]["message"].startswith("1 of 2 parabolas takes in sizes up to a factor of 40 apart")
    warn_parabolas(optima.iloc[:1], "isoflop", again := Warnings())
    assert again == []

"""Files of fits, new and old, whole and broken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.predict import optimum as opt
from analysis.predict import parse, read
from sweep.schema import InputError


def values(**estimates: float | None) -> dict[str, Any]:
    return {name: {"value": value, "se": None, "low": None, "high": None} for name, value in estimates.items()}


LINE = values(a=0.5, b=0.5, N_coefficient=0.1, D_coefficient=1.6)
PARAMETRIC = values(A=400.0, B=400.0, E=1.7, alpha=0.34, beta=0.28)
SURFACE = values(N_c=6.5e13, alpha_N=0.077, S_c=2100.0, alpha_S=0.76)
CRITICAL = {"law": "critical-batch", "estimates": values(B_star=2.1e8, alpha_B=0.21), "loss_low": 2.0, "loss_high": 3.0}


def test_a_whole_file_has_every_approach() -> None:
    kinds = {
        "raw": {"estimates": LINE | values(B_coefficient=2048.0, B_exponent=0.0), "span": {"flops": [1e15, 1e18]}},
        "adjusted": {"estimates": LINE | values(L_coefficient=30.0, L_exponent=-0.05, curvature=0.02)},
    }
    laws = {
        "critical-batch": CRITICAL,
        "frontier": {"law": "frontier", "kinds": kinds, "level": 0.9, "convention": "kaplan", "warnings": []},
        "isoflop": {"law": "isoflop", "estimates": None},
        "parametric": {
            "law": "parametric",
            "estimates": PARAMETRIC,
            "level": 0.8,
            "warnings": [{"law": "parametric", "code": "misfit", "message": "it misses"}],
        },
        "kaplan-ns": {"law": "kaplan-ns", "estimates": SURFACE},
        "power-law": {"law": "power-law", "estimates": values(exponent=0.5)},
    }
    fits = parse({"meta": {}, "laws": laws})
    found = {approach.name: approach for approach in fits.approaches}
    assert list(found) == ["frontier raw", "frontier adjusted", "parametric", "kaplan-ns"]
    raw, adjusted = found["frontier raw"].law, found["frontier adjusted"].law
    assert isinstance(raw, opt.Lines)
    assert isinstance(adjusted, opt.Lines)
    assert (raw.least, adjusted.least, found["kaplan-ns"].law.least, found["parametric"].law.least) == (
        False, True, True, False,
    )  # fmt: skip
    assert raw.loss is None
    assert raw.batch_tokens is not None
    assert raw.batch_tokens(np.array([1e17]))[0] == 2048
    assert found["frontier raw"].span == {"flops": (1e15, 1e18)}
    assert found["frontier raw"].convention == "kaplan"
    assert (found["parametric"].level, found["parametric"].warnings) == (0.8, ("it misses",))
    assert fits.critical is not None
    assert fits.critical.at(np.array([2.0]))[0] == pytest.approx(2.1e8 * 2 ** (-1 / 0.21))
    assert fits.critical.measured == pytest.approx((1.94, 3.09))
    assert fits.without == ("isoflop: has no value of a, b, N_coefficient, D_coefficient",)


def test_draws_stay_joint_and_what_failed_is_no_number() -> None:
    draws = {
        "a": [0.5, None, 0.4],
        "b": [0.5, None, 0.6],
        "N_coefficient": [0.1, None, 0.3],
        "D_coefficient": [1, 2, 3],
    }
    line = LINE | values(curvature=0.02)
    [approach] = parse({"law": "isoflop", "estimates": line, "draws": draws}).approaches
    law = approach.law
    assert isinstance(law, opt.Lines)
    np.testing.assert_array_equal(law.params.exponent, [0.5, 0.5, math.nan, 0.4])
    np.testing.assert_array_equal(law.params.coefficient, [0.1, 0.1, math.nan, 0.3])
    assert law.curvature is not None
    np.testing.assert_array_equal(law.curvature, [0.02, math.nan, math.nan, math.nan])  # it has no draws of its own


def test_draws_of_the_surface_are_paired_with_those_of_its_batch_law() -> None:
    draws = {name: [estimate["value"]] * 3 for name, estimate in SURFACE.items()}
    critical = CRITICAL | {"draws": {"B_star": [1e8, 2e8], "alpha_B": [0.2, 0.22]}}
    laws = {"kaplan-ns": {"law": "kaplan-ns", "estimates": SURFACE, "draws": draws}, "critical-batch": critical}
    [approach] = parse({"laws": laws}).approaches
    assert isinstance(approach.law, opt.Surface)
    np.testing.assert_allclose(approach.law.B_star, [2.1e8, 1e8, 2e8])
    np.testing.assert_allclose(approach.law.slope, [-1 / 0.21, -5, -1 / 0.22])
    assert approach.law.N_c.shape == (3,)
    alone = parse({"law": "kaplan-ns", "estimates": SURFACE})
    assert alone.approaches == ()
    assert "B_crit" in alone.without[0]


def test_groups_of_one_fit_are_approaches_of_their_own() -> None:
    groups = [{"group": "web", "estimates": PARAMETRIC}, {"group": "code", "estimates": PARAMETRIC, "level": 0.8}]
    fits = parse({"law": "parametric", "level": 0.9, "convention": "total", "groups": groups})
    assert [(a.name, a.level, a.convention) for a in fits.approaches] == [
        ("parametric (web)", 0.9, "total"),
        ("parametric (code)", 0.8, "total"),
    ]


def test_conventions_of_one_table_are_approaches_of_their_own() -> None:
    kinds = {"raw": {"estimates": LINE}, "adjusted": {"estimates": LINE}}
    fit = {"law": "frontier", "kinds": kinds, "level": 0.9}
    both = {"kaplan": fit | {"convention": "kaplan"}, "total": fit | {"convention": "total"}}
    found = parse({"law": "frontier", "conventions": both}).approaches
    assert [(a.name, a.convention, a.law.least) for a in found] == [
        ("frontier raw kaplan", "kaplan", False),
        ("frontier adjusted kaplan", "kaplan", True),
        ("frontier raw total", "total", False),
        ("frontier adjusted total", "total", True),
    ]


def test_constants_without_calibrated_intervals_are_named() -> None:
    estimates = LINE | {"a": LINE["a"] | {"calibrated": False}}
    [approach] = parse({"law": "isoflop", "estimates": estimates}).approaches
    assert approach.warnings == ("intervals of a hold the truth too rarely or too often on synthetic sweeps",)


def test_a_file_without_predicting_laws_says_which_do() -> None:
    fits = parse({"law": "power-law", "estimates": values(exponent=0.5)})
    assert fits.approaches == ()
    assert fits.without == (
        "power-law: no best size follows from it; it does from frontier, isoflop, parametric, repeated, kaplan-ns",
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "holds no fits"),
        ("{}", "holds no fits"),
        ('{"laws": {}}', "holds no fits"),
        ('{"laws": {"isoflop": 3}}', "holds no fits"),
        (json.dumps({"law": "isoflop", "estimates": {"a": 3}}), "not as isoloss writes them"),
        (json.dumps({"law": "isoflop", "estimates": LINE | {"b": {"value": "x"}}}), "not as isoloss writes them"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "fits.json"
    path.write_text(text)
    with pytest.raises(InputError, match=what) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(InputError, match="a folder"):
        read(tmp_path)

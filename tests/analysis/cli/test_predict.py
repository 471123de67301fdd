"""`isoloss predict`: from a file of fits to a table, a JSON file and one-line refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import published as pub
from analysis.cli.predict import number, run
from sweep.cli import main


def estimates(**values: float) -> dict[str, dict[str, float | None]]:
    return {name: {"value": v, "se": None, "low": None, "high": None} for name, v in values.items()}


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    """A file with approach 3, whose draws differ in E alone, and Kaplan's surface with its critical batch."""
    law, surface = pub.REFIT, pub.SURFACE
    own = {name: float(getattr(law, name)) for name in ("A", "B", "E", "alpha", "beta")}
    draws = {name: [value] * 21 for name, value in own.items()}
    draws["E"] = [law.E + 0.001 * i for i in range(-10, 11)]
    names = ("N_c", "alpha_N", "S_c", "alpha_S")
    laws = {
        "critical-batch": {
            "law": "critical-batch",
            "estimates": estimates(B_star=pub.B_CRIT.coefficient, alpha_B=pub.ALPHA_B),
            "span": {"loss": [2.5, 5.0]},
        },
        "parametric": {
            "law": "parametric", "estimates": estimates(**own), "draws": draws, "convention": "total", "level": 0.9,
            "span": {"flops": [1e18, 1e22]}, "warnings": [],
        },
        "kaplan-ns": {
            "law": "kaplan-ns", "estimates": estimates(**{name: getattr(surface, name) for name in names}),
            "convention": "kaplan", "level": 0.9,
        },
    }  # fmt: skip
    path = tmp_path / "fits.json"
    path.write_text(json.dumps({"meta": {}, "level": 0.9, "laws": laws, "warnings": []}))
    return path


def test_a_budget_is_printed_and_written(fits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = fits.parent / "new" / "prediction.json"
    assert run([str(fits), "--flops", "5.76e23", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5.76e23 FLOP; kaplan: N = attention + MLP matrices")
    assert "total: N = all parameters" in lines[0]
    head = next(line for line in lines if line.startswith("approach"))
    assert head.split() == ["approach", "N", "D", "B", "S", "loss", "beyond", "2N", "N/2"]
    row = next(i for i, line in enumerate(lines) if line.startswith("parametric "))
    data = json.loads(out.read_text())
    by_name = {approach["approach"]: approach for approach in data["approaches"]}
    parametric = by_name["parametric"]
    assert parametric["params"]["value"] == pytest.approx(72.5e9, rel=0.01)
    cells = lines[row].split()
    assert cells[1] == number(parametric["params"]["value"])
    assert cells[6] == "57.6x"
    loss = parametric["loss"]
    assert loss["high"] - loss["low"] == pytest.approx(0.018)  # the 5th to 95th of 21 draws, 0.001 apart
    assert f"{number(loss['low'])}..{number(loss['high'])}" in lines[row + 1]
    assert f"{parametric['wrong_size']['half']['flops']['value']:.3g} C" in lines[row + 1]
    assert by_name["kaplan-ns"]["flops_min"]["value"] == pytest.approx(2.88e23)
    text = "\n".join(lines)
    assert "kaplan-ns: trained at B_crit" in text
    assert "5.76e23 FLOP are C_min = 2.88e23" in text
    assert "warning: parametric: extrapolates 57.6 times" in text
    assert "warning: parametric: B_crit is known at losses 2.42 to 5.15" in text
    assert lines[-1] == f"json    {out}"


@pytest.mark.parametrize(("flag", "value", "hidden"), [("--loss", "2.6", "loss"), ("--params", "1e9", "N")])
def test_a_loss_or_a_size_is_answered_with_its_compute(
    fits: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, hidden: str
) -> None:
    assert run([str(fits), flag, value]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("approach"))
    assert "C" in head.split()
    assert hidden not in head.split()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.json", "--flops", "1e20"], "no such file"),
        (["FITS", "--flops", "0"], "give a positive number"),
        (["FITS", "--loss", "nan"], "give a positive number"),
        (["FITS", "--flops", "much"], "invalid float value"),
        (["FITS"], "one of the arguments --flops --loss --params is required"),
        (["FITS", "--flops", "1e20", "--loss", "2"], "not allowed with"),
        (["HALF", "--loss", "1.5"], "irreducible loss is 1.817"),
        (["ONLY", "--flops", "1e20"], "critical-batch: no best size follows"),
    ],
)
def test_unusable_input_is_one_line(
    fits: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    laws = json.loads(fits.read_text())["laws"]
    for name, law in (("HALF", "parametric"), ("ONLY", "critical-batch")):
        (fits.parent / name).write_text(json.dumps(laws[law]))
    (fits.parent / "FITS").write_text(fits.read_text())
    assert main(["predict", str(fits.parent / argv[0]), *argv[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_has_an_example_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sweep.cli import main; assert main(['predict', '--help']) == 0; "
        "print({'torch', 'pandas', 'scipy', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "isoloss predict sweeps/quick/analysis/fits.json --flops 1e14" in done.stdout
    assert done.stdout.rstrip().endswith("set()")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.0421e10, "4.04e10"),
        (1e21, "1.00e21"),
        (14994.4, "14,994"),
        (59.31, "59.31"),
        (2.0, "2"),
        (0.00012, "1.20e-4"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text

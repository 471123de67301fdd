"""`isoloss fit` from a table on disk to printed numbers and JSON, for every law and for sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.cli.fit import run
from analysis.cli.laws import LAWS
from analysis.cli.parser import CONVENTIONS
from analysis.tables import conventions
from analysis.uncertainty.simulate import Truth, synthetic_sweep
from sweep.cli import main
from sweep.schema import InputError

POINTS = Path(__file__).parents[4] / "shared" / "data" / "chinchilla_points.csv"
TRUTH = Truth()


def runs(noise: float = 0.0) -> pd.DataFrame:
    """Seven sizes at each of four budgets, from Hoffmann's form with known constants; half in each of two sets."""
    flops = np.repeat(np.geomspace(1e18, 1e21, 4), 7)
    params = (flops / 120) ** 0.5 * np.tile(np.geomspace(1 / 4, 4, 7), 4)
    tokens = flops / (6 * params)
    loss = 1.8 + 480 / params**0.35 + 2100 / tokens**0.37
    loss *= np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))
    return pd.DataFrame({"params": params, "tokens": tokens, "flops": flops, "loss": loss, "seed": range(28)})


def curves() -> pd.DataFrame:
    """Six undecayed curves of the planted Kaplan surface at a huge batch, a row an evaluation."""
    frames = []
    for number, params in enumerate(np.geomspace(3e3, 1e5, 6)):
        steps = np.geomspace(50, 3e4 / (number + 1), 25)
        tokens = steps * 1e4
        loss = (TRUTH.N_c / params) ** TRUTH.alpha_N + (TRUTH.S_c / steps) ** TRUTH.alpha_S
        columns = {"params": params, "tokens": tokens, "steps_min": steps, "loss": loss, "batch_tokens": 1e4}
        frames.append(pd.DataFrame(columns | {"run": f"r{number}", "unique_tokens": 1e9}))
    return pd.concat(frames)


def batches() -> pd.DataFrame:
    rows = []
    for model, shift in (("small", 0.1), ("large", 0.0)):
        for loss in (3.0, 2.8, 2.6, 2.4):
            for batch in 256 * 2.0 ** np.arange(6):
                b_crit, s_min = TRUTH.B_crit(loss), 39 * (loss - 1.5 - shift) ** -1.3
                rows.append((model, loss, batch, s_min * (1 + b_crit / batch)))
    return pd.DataFrame(rows, columns=["model", "target_loss", "batch_tokens", "steps"])


def fit(frame: pd.DataFrame, folder: Path, law: str, *flags: str, code: int = 0) -> dict[str, Any]:
    """Its JSON."""
    frame.to_csv(folder / "t.csv", index=False)
    out = folder / "out" / "fit.json"
    assert run([law, str(folder / "t.csv"), *flags, "--json", str(out)]) == code
    found: dict[str, Any] = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


def value(found: dict[str, Any], name: str) -> float:
    return float(found["estimates"][name]["value"])


def test_parametric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = runs(noise=0.002).rename(columns={"params": "N", "tokens": "D"}).drop(columns="flops")
    flags = ["--columns", "params=N,tokens=D", "--drop-highest", "2", "--where", "seed != 5", "--bootstrap", "20"]
    found = fit(frame, tmp_path, "parametric", *flags, "--holdout-above", "5e20", "--diagnose")
    assert value(found, "alpha") == pytest.approx(0.35, abs=0.03)
    assert found["points"] == 25
    assert found["exclusions"] == [
        {"reason": "outside --where seed != 5", "count": 1},
        {"reason": "with the highest loss (--drop-highest 2)", "count": 2},
    ]
    assert (found["law"], found["level"], found["bootstrap"], found["starts"]) == ("parametric", 0.9, 20, 4500)
    assert (found["device"], found["loss_function"], found["convention"]) == ("cpu", "huber", None)
    low, high = found["estimates"]["alpha"]["low"], found["estimates"]["alpha"]["high"]
    assert low < value(found, "alpha") < high
    assert len(found["draws"]["alpha"]) == 20
    assert found["diagnosis"]["hold_out"]["held"] == 7
    assert found["diagnosis"]["influence"]["findings"]
    printed = capsys.readouterr().out
    for text in (
        "25 points",
        "left out  1 outside --where seed != 5",
        "90% interval",
        "hold-out",
        "alpha  0.3",
        "fit.json",
    ):
        assert text in printed
    plain = fit(frame, tmp_path, "parametric", *flags[:2], "--loss", "absolute", "--no-offset")
    assert plain["estimates"]["alpha"]["se"] is None
    assert "E" not in plain["estimates"]
    assert "no intervals: --bootstrap" in capsys.readouterr().out


def test_power_law_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.tile(np.geomspace(1e3, 1e9, 8), 2)
    frame = pd.DataFrame({"flops": x, "best": 5 * x ** np.repeat([-0.1, -0.2], 8), "set": np.repeat(["b", "a"], 8)})
    frame["count"] = 2.0
    flags = ["--x", "flops", "--y", "best", "--by", "set", "--bootstrap", "5", "--weights", "count"]
    found = fit(frame, tmp_path, "power-law", *flags)
    assert [group["group"] for group in found["groups"]] == ["b", "a"]
    assert [value(group, "exponent") for group in found["groups"]] == pytest.approx([-0.1, -0.2])
    assert (found["points"], found["by"], found["groups"][0]["points"]) == (16, "set", 8)
    assert found["groups"][0]["span"]["flops"] == pytest.approx([1e3, 1e9])
    printed = capsys.readouterr().out
    assert "weighted by count: 16 points" in printed
    assert "set a: 8 points" in printed


def test_critical_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = fit(batches(), tmp_path, "critical-batch", "--by", "model", "--bootstrap", "10")
    assert value(found, "alpha_B") == pytest.approx(TRUTH.alpha_B, rel=1e-5)
    assert [(g["group"], g["target_loss"]) for g in found["groups"]][:5:4] == [("small", 3.0), ("large", 3.0)]
    assert value(found["groups"][0], "B_crit") == pytest.approx(float(TRUTH.B_crit(3.0)), rel=1e-5)
    assert "B_crit = B_star / L^(1/alpha_B)" in capsys.readouterr().out
    one = fit(batches().query("target_loss == 3 and model == 'large'"), tmp_path, "critical-batch")
    assert value(one, "B_20") == pytest.approx(1.2 * 256 + 0.2 * float(TRUTH.B_crit(3.0)), rel=1e-5)


def test_isoflop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("parabola", "akima"):
        found = fit(runs(), tmp_path, "isoflop", "--method", method)
        assert value(found, "a") == pytest.approx(0.37 / 0.72, abs=0.01)
        assert len(found["optima"]) == 4
    assert "params" in capsys.readouterr().out


def test_frontier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = curves().assign(warmup_tokens=0.0)
    start = frame.groupby("run").head(1).assign(tokens=0.0, loss=9.0)
    flags = ["--critical-batch", "1", str(TRUTH.alpha_B)]  # tokens: far below the batch, so that C_min is far below C
    found = fit(pd.concat([start, frame]), tmp_path, "frontier", *flags)
    expected = TRUTH.alpha_S / (TRUTH.alpha_S + TRUTH.alpha_N)
    assert value(found["kinds"]["raw"], "a") == pytest.approx(expected, abs=0.05)
    assert value(found["kinds"]["adjusted"], "a") < value(found["kinds"]["raw"], "a")
    assert found["exclusions"] == [{"reason": "evaluated before training", "count": 6}]
    assert "adjusted" in capsys.readouterr().out
    again = fit(frame, tmp_path, "frontier", "--method", "envelope")
    assert (again["method"], value(again, "a")) == ("envelope", pytest.approx(expected, abs=0.15))


@pytest.mark.parametrize(
    ("law", "frame", "flags", "planted"),
    [
        ("kaplan-n", curves().assign(loss=lambda f: (5e3 / f["params"]) ** 0.08), (), {"N_c": 5e3, "alpha_N": 0.08}),
        ("kaplan-d", curves().assign(loss=lambda f: (5e3 / f["tokens"]) ** 0.1), (), {"alpha_D": 0.1}),
        ("kaplan-c", runs().assign(loss=lambda f: (1e30 / f["flops"]) ** 0.05), (), {"alpha_C": 0.05}),
        (
            "kaplan-nd",
            runs().assign(loss=lambda f: ((1e14 / f["params"]) ** 0.8 + 2e13 / f["tokens"]) ** 0.095),
            (),
            {"alpha_N": 0.076, "alpha_D": 0.095},
        ),
        ("kaplan-ns", curves(), (), {"N_c": TRUTH.N_c, "alpha_N": TRUTH.alpha_N, "alpha_S": TRUTH.alpha_S}),
        (
            "kaplan-ns",
            curves().assign(steps=lambda f: f["steps_min"] * (1 + TRUTH.B_crit(f["loss"].to_numpy()) / 1e4)),
            ("--critical-batch", str(TRUTH.B_star), str(TRUTH.alpha_B)),
            {"alpha_N": TRUTH.alpha_N, "alpha_S": TRUTH.alpha_S},
        ),
    ],
)
def test_kaplan_laws(
    law: str, frame: pd.DataFrame, flags: tuple[str, ...], planted: dict[str, float], tmp_path: Path
) -> None:
    found = fit(frame.drop(columns="steps_min") if flags else frame, tmp_path, law, *flags)
    assert {name: value(found, name) for name in planted} == pytest.approx(planted, rel=1e-3)


def test_repeated(tmp_path: Path) -> None:
    frame = pd.concat([runs().assign(unique_tokens=runs()["tokens"] / number) for number in (1, 4, 20)])
    passes = frame["tokens"] / frame["unique_tokens"] - 1
    effective = frame["unique_tokens"] * (1 + 15 * (1 - np.exp(-passes / 15)))
    frame["loss"] = 1.8 + 480 / frame["params"] ** 0.35 + 2100 / effective**0.37
    found = fit(frame, tmp_path, "repeated", "--base", "480", "2100", "1.8", "0.35", "0.37")
    assert value(found, "R_D") == pytest.approx(15, rel=0.01)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collected sweep directory."""
    folder, table = tmp_path_factory.mktemp("sweep"), synthetic_sweep(points_per_decade=6)
    failed = table.runs.iloc[:1].assign(run_id="lost", status="failed")
    pd.concat([table.runs, failed]).to_parquet(folder / "runs.parquet")
    table.curves.astype({"run_id": "string"}).to_parquet(folder / "curves.parquet")
    return folder


def test_a_sweep_is_read_along_its_curves(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fit.json"
    assert run(["critical-batch", str(swept), "--where", "d_model != 48", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert value(found, "alpha_B") == pytest.approx(TRUTH.alpha_B, rel=0.05)
    assert found["exclusions"] == [
        {"reason": "status failed", "count": 1},
        {"reason": "outside --where d_model != 48", "count": 1},
    ]
    assert "convention kaplan: 21 runs" in capsys.readouterr().out
    with pytest.raises(InputError, match="isoflop"):
        run(["isoflop", str(swept / "runs.parquet"), "--where", "d_model < 20"])


def test_a_sweep_with_flags_of_a_table_is_read_at_the_ends_of_its_runs(swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    assert run(["power-law", str(swept), "--x", "tokens", "--y", "test_loss", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["points"] == 22
    assert run(["parametric", str(swept), "--drop-highest", "1", "--convention", "total", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["points"], found["convention"]) == (21, "total")


def test_all_conventions_from_the_same_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without embeddings the small sizes grow faster: Kaplan's exponent beside Hoffmann's."""
    frame = runs(noise=1e-4).assign(params_total=lambda f: f["params"])
    frame["params"] = [_without_embeddings(n) for n in frame["params_total"]]
    frame = frame.assign(params_attention=frame["params"] / 3, params_mlp=2 * frame["params"] / 3)
    head = frame["params_total"] - frame["params"]
    frame = frame.assign(flops_per_token_head=6 * head, params_embedding=head, flops_per_token_context=0.0)
    frame = frame.assign(n_layer=8, n_head=8, n_ctx=1024).drop(columns="flops")
    found = fit(frame, tmp_path, "isoflop", "--convention", "all")
    a = {name: value(part, "a") for name, part in found["conventions"].items()}
    assert list(a) == list(CONVENTIONS)
    assert a["total"] == pytest.approx(0.37 / 0.72, abs=0.02)
    assert a["kaplan"] > a["total"] + 0.005
    printed = capsys.readouterr().out
    assert "the same runs counted differently" in printed
    assert all(name in printed for name in CONVENTIONS)


def _without_embeddings(total: float) -> float:
    roots = np.roots([1, 0, 47_491, -total])  # N + 47,491 N^(1/3) = total, in N^(1/3)
    return float(roots[np.isreal(roots)].real[0] ** 3)


@pytest.mark.skipif(not POINTS.is_file(), reason="the public table is not here")
def test_the_public_table(tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    assert main(["fit", "parametric", str(POINTS), "--where", "outlier == 0", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["objective"] <= 1.018275e-3
    expected = {"alpha": 0.3473, "beta": 0.3672, "E": 1.8172, "A": 477.8}
    assert {name: value(found, name) for name in expected} == pytest.approx(expected, rel=2e-4)
    assert found["estimates"]["A"]["se"] is None


@pytest.mark.parametrize("law", ["", *LAWS])
def test_help_shows_an_example_and_loads_little(law: str) -> None:
    script = (
        f"import sys; from analysis.cli.verbs import run; run('fit', {[law, '--help'] if law else ['--help']}); "
        "sys.exit(bool({'pandas', 'torch', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert f"example: isoloss fit {law}" in shown.stdout


def test_examples_are_good_command_lines() -> None:
    from analysis.cli.fit import _parser

    for law in LAWS.values():
        arguments = _parser().parse_args(law.example.split())
        assert arguments.law == law.name


def test_names_of_the_conventions_are_the_library_s() -> None:
    assert CONVENTIONS == conventions.CONVENTIONS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "LAW"),
        (["parametrc", "t.csv"], "invalid choice"),
        (["isoflop", "t.csv", "--offset"], "--offset"),
        (["isoflop", "t.csv", "--loss", "huber"], "--loss"),
        (["frontier", "t.csv", "--weights", "w"], "--weights"),
        (["power-law", "t.csv"], "--x"),
        (["parametric", "t.csv", "--columns", "params"], "params=N,tokens=D"),
        (["parametric", "t.csv", "--bootstrap", "-1"], "-1 is negative"),
        (["parametric", "t.csv", "--convention", "all"], "invalid choice"),
        (["parametric", "absent.csv"], "absent.csv: no such file"),
        (["parametric", "t.csv", "--where", "loss.max() > 3"], "call is not allowed"),
        (["parametric", "t.csv", "--by", "seed"], "needs different values"),
        (["parametric", "t.csv", "--holdout-above", "1e30"], "holdout"),
        (["kaplan-ns", "t.csv"], "steps_min is missing"),
        (["critical-batch", "t.csv"], "batch_tokens and steps are missing"),
        (["isoflop", "t.csv", "--convention", "total"], "params_total"),
        (["isoflop", "t.csv", "--where", "params < 3e8 and flops < 2e18 and params > 9e7"], "no optimum"),
        (["isoflop", "t.csv", "--noise", "-1"], "noise is -1"),
    ],
)
def test_unusable_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs().to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        run(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_example_script_runs_anywhere(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "scripts" / "example_fit.py"
    shown = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert "for 1e23 FLOP" in shown.stdout
    assert "isoflop" in shown.stdout.split("for 1e23 FLOP")[1]


def test_a_sweep_that_repeats_nothing_says_so(swept: Path) -> None:
    with pytest.raises(InputError, match="repeated: no run passes over its data more than once"):
        run(["repeated", str(swept)])

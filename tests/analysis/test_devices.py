"""Where laws are fitted: what `--device` chooses, that a sweep's fits all go there, and that CUDA agrees with the CPU.

The CPU's second name, "cpu:0", stands for another device where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import engine, kaplan, kaplan_loss, parametric, power_law, published, repeated
from analysis.chain.derive import derive
from analysis.chain.results import Laws
from analysis.cli.fit import run as run_fit
from analysis.cli.parser import device
from analysis.cli.verbs import run as run_verb
from analysis.outcome import Outcome
from analysis.tables.table import Table
from analysis.uncertainty.simulate import decayed_sweep, synthetic_sweep
from sweep.cli import main
from sweep.schema import InputError

N, D = (g.ravel() for g in np.meshgrid(np.geomspace(1e4, 1e7, 6), np.geomspace(1e6, 1e9, 6)))
NOISE = np.exp(0.003 * np.random.default_rng(0).standard_normal((2, 36)))
UNIQUE = np.tile([3e6, 1e9], 18)
HOFFMANN = published.Parametric(20.0, 400.0, 1.2, 0.35, 0.4, "planted")
REPEATED = repeated.predict(published.Repeated(HOFFMANN, 12.0, 5.0, "planted"), N, D, np.minimum(UNIQUE, D))
SURFACE = published.DataSurface(N_c=6e13, alpha_N=0.08, D_c=2e13, alpha_D=0.1, source="planted")

LAWS: dict[str, Callable[..., Outcome]] = {
    "power-law": lambda **k: power_law.fit(D[::6], 2 + 50 * D[::6] ** -0.3 * NOISE[0, :6], offset=True, **k),
    "parametric": lambda **k: parametric.fit(N, D, HOFFMANN.loss(N, D) * NOISE[0], **k),
    "parametric absolute": lambda **k: parametric.fit(N, D, HOFFMANN.loss(N, D) * NOISE[0], kind="absolute", **k),
    "kaplan-ns": lambda **k: kaplan.fit(N, D / 1e3, ((6e9 / N) ** 0.08 + (2e3 / (D / 1e3)) ** 0.7) * NOISE[0], **k),
    "kaplan-n": lambda **k: kaplan_loss.fit_params(N, (9e13 / N) ** 0.076 * NOISE[0], **k),
    "kaplan-nd": lambda **k: kaplan_loss.fit_params_tokens(N, D, SURFACE.loss(N, D) * NOISE[0], **k),
    "repeated": lambda **k: repeated.fit(N, D, UNIQUE, REPEATED * NOISE[0], **k),
}
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sweep() -> Table:
    """Undecayed curves, three batches among them."""
    return synthetic_sweep(points_per_decade=6)


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, chosen in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert (device("auto"), device("cpu")) == (chosen, "cpu")
    with pytest.raises(InputError, match="--device cuda: torch sees no CUDA device here; use --device cpu"):
        device("cuda")


@pytest.mark.parametrize("verb", ["analyze", "figures", "fit"])
def test_a_device_that_is_not_there_ends_in_one_line(
    verb: str, poor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    poor.table.runs.to_parquet(tmp_path / "runs.parquet")
    poor.table.curves.to_parquet(tmp_path / "curves.parquet")
    law = ["critical-batch"] if verb == "fit" else []
    assert main([verb, *law, str(tmp_path), "--device", "cuda"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("--device cuda: torch sees no CUDA device here; use --device cpu")
    assert "\n" not in said


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Problems and device of every fit of the engine, from here on."""
    seen: list[tuple[int, str]] = []
    solve = engine._solve

    def watched(*arguments: Any) -> engine.Fit:
        found = solve(*arguments)
        seen.append((len(found.objective), arguments[-1]))
        return found

    monkeypatch.setattr(engine, "_solve", watched)
    return seen


@pytest.mark.parametrize("table", [sweep(), decayed_sweep(np.geomspace(1e10, 1e13, 5), sigma=0.003)])
def test_a_sweep_is_fitted_where_it_is_asked_to_be(table: Table, devices: list[tuple[int, str]]) -> None:
    asked = derive(table, replicates=6, device="cpu:0")
    assert asked.to_json()["meta"]["device"] == "cpu:0"
    assert any(problems > 1 for problems, _ in devices)
    assert {where for problems, where in devices if problems > 1} == {"cpu:0"}
    assert sum(where != "cpu:0" for _, where in devices) <= 3 * 4  # single fits, of the bias of few sizes by convention
    agree(asked, derive(table, replicates=6, device="cpu"), 0.0)


def test_every_verb_hands_the_device_on(
    poor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[tuple[int, str]]
) -> None:
    for module in ("analysis.cli.verbs", "analysis.cli.chain", "analysis.cli.fit_points"):
        monkeypatch.setattr(f"{module}.device", lambda name: f"{name}:0")
    monkeypatch.setattr("analysis.figures.write_measured", lambda *_: {})  # drawing takes longer than all fits
    table = decayed_sweep(np.geomspace(1e10, 1e13, 4), sigma=0.003)
    table.runs.to_parquet(tmp_path / "runs.parquet")
    table.curves.to_parquet(tmp_path / "curves.parquet")
    points = tmp_path / "points.csv"
    table.runs[["params", "tokens"]].assign(loss=table.runs["test_loss"]).to_csv(points, index=False)
    flags = ["--bootstrap", "3", "--device", "cpu"]
    for run in (
        lambda: run_verb("figures", [str(tmp_path), *flags]),
        lambda: run_fit(["parametric", str(tmp_path), *flags]),
        lambda: run_fit(["parametric", str(points), *flags, "--diagnose", "--holdout-above", "1e12"]),
    ):
        devices.clear()
        assert run() == 0
        assert {where for problems, where in devices if problems > 1} == {"cpu:0"}


@pytest.mark.parametrize("law", LAWS)
def test_every_law_says_where_it_was_fitted(law: str) -> None:
    found, again = (LAWS[law](bootstrap=4, device=where) for where in ("cpu:0", "cpu"))
    assert (found.device, again.device) == ("cpu:0", "cpu")
    for name, draws in again.draws.items():
        np.testing.assert_array_equal(found.draws[name], draws)


@pytest.mark.parametrize("law", [pytest.param(law, marks=CUDA) for law in LAWS])
def test_cuda_agrees_with_the_cpu_on_every_law(law: str) -> None:
    cpu, cuda = (LAWS[law](bootstrap=50, device=where) for where in ("cpu", "cuda"))
    assert cuda.device == "cuda"
    assert cuda.objective == pytest.approx(cpu.objective, rel=1e-9)
    for name, estimate in cpu.estimates.items():
        assert cuda.estimates[name].value == pytest.approx(estimate.value, rel=1e-4), name
        np.testing.assert_allclose(cuda.draws[name], cpu.draws[name], rtol=1e-3)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(sweep(), marks=CUDA, id="undecayed"),
        pytest.param(decayed_sweep(np.geomspace(1e10, 1e13, 5), sigma=0.003), marks=CUDA, id="decayed"),
    ],
)
def test_cuda_agrees_with_the_cpu_on_a_sweep(table: Table) -> None:
    agree(*(derive(table, replicates=40, device=where) for where in ("cuda", "cpu")), 1e-3)


def agree(found: Laws, expected: Laws, rel: float) -> None:
    """The same laws with the same estimates and intervals."""
    one, other = (laws.to_json()["laws"] for laws in (found, expected))
    assert set(one) == set(other)
    assert len(other) >= 3
    for law, section in other.items():
        for name, estimate in section.get("estimates", {}).items():
            for end in ("value", "low", "high"):
                got, wanted = one[law]["estimates"][name][end], estimate[end]
                assert got == (wanted if wanted is None else pytest.approx(wanted, rel=rel, abs=0)), (law, name, end)

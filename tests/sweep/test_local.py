"""The local launcher's parts: the frozen plan, what is left to do, settings."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from commands import Commands

from sweep.estimate import available_cores, plan_workers
from sweep.launch.freeze import Frozen, as_begun, freeze
from sweep.launch.local import devices
from sweep.launcher import LocalLauncher
from sweep.lease import take
from sweep.plan import read_plan, write_plan
from sweep.record import RunRecord
from sweep.schema import CURVE_COLUMNS, MANIFEST_FILE, METRICS_FILE, PLAN_FILE, SPEC_FILE, STATUS_FILE, InputError
from sweep.spec import PlannedRun


@pytest.fixture
def commands(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Commands:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ISOLOSS_CACHE", str(cache))
    return Commands(tmp_path, cache)


def test_the_plan_is_frozen_with_its_data(commands: Commands) -> None:
    out = commands.folder / "out"
    runs = commands.plan()
    frozen = freeze(out, runs)
    written = read_plan(out / PLAN_FILE)
    assert [run.run_id for run in written] == [run.run_id for run in runs]
    assert all(run.data_hash for run in written)
    assert frozen.runs == written
    assert frozen.corpus(written[0]).is_dir()


def test_the_same_runs_go_on_as_they_were_frozen(commands: Commands) -> None:
    out = commands.folder / "out"
    first = freeze(out, commands.plan())
    before = (out / PLAN_FILE).read_bytes()
    again = freeze(out, list(reversed(commands.plan("execution.micro_batch=1", "launcher.threads=2"))))
    assert again.runs == first.runs
    assert (out / PLAN_FILE).read_bytes() == before


def test_a_plan_for_a_gpu_goes_on_with_the_micro_batch_of_a_cpu(commands: Commands) -> None:
    out = commands.folder / "out"
    runs = commands.plan()
    assert all(run.execution.micro_batch for run in runs)
    freeze(out, [_with_micro_batch(run, None) for run in runs])
    assert [run.execution for run in freeze(out, runs).runs] == [run.execution for run in runs]


def test_another_plan_is_refused(commands: Commands) -> None:
    out = commands.folder / "out"
    freeze(out, commands.plan())
    before = (out / PLAN_FILE).read_bytes()
    for overrides in (["seed=1"], ["grid.blocks.run.product.batch_tokens=[128]"]):
        with pytest.raises(InputError, match="belongs to another plan"):
            freeze(out, commands.plan(*overrides))
    assert (out / PLAN_FILE).read_bytes() == before


def test_other_text_is_refused(commands: Commands) -> None:
    out = commands.folder / "out"
    text = commands.folder / "text"
    runs = commands.plan()
    shutil.copytree(Path(runs[0].source.files[0]).parent, text)
    own = [f"data.files=['{text}/*.py']", "data.max_epochs=100"]
    freeze(out, commands.plan(*own))
    (text / "decoder.py").write_text("another = 'text'\n" * 400)
    with pytest.raises(InputError, match="was started on other text"):
        freeze(out, commands.plan(*own))


def test_too_small_a_text_stops_the_sweep_before_anything_is_written(commands: Commands) -> None:
    out = commands.folder / "out"
    with pytest.raises(InputError, match="max_epochs"):
        freeze(out, commands.plan("data.max_epochs=0.001"))
    assert not out.exists()


def test_a_sweep_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs"):
        freeze(tmp_path / "out", [])


def test_an_edited_plan_is_refused(commands: Commands) -> None:
    out = commands.folder / "out"
    freeze(out, commands.plan())
    path = out / PLAN_FILE
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(InputError, match=r"plan\.jsonl:1: .*was edited"):
        freeze(out, commands.plan())


def test_what_is_left_is_ordered_longest_first(commands: Commands) -> None:
    batches = "grid.blocks.run.product.batch_tokens=[128,256,512,1024]"
    runs = commands.plan(batches, "horizon.steps=20", "launcher.stack=off")
    statuses = ["done", "running", "failed"]
    frozen = Frozen(commands.folder / "out", runs, {})
    for run, status in zip(runs, statuses, strict=False):
        record(frozen, run, status)
    left = frozen.unfinished()
    assert {run.run_id for run in left} == {run.run_id for run in runs[1:]}
    seconds = [run.costs["seconds"] for run in left]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("status", ["diverged", "out_of_memory"])
def test_results_are_not_trained_again(status: str, commands: Commands) -> None:
    runs = commands.plan()
    write_plan(commands.folder / "out" / PLAN_FILE, runs)
    frozen = Frozen(commands.folder / "out", runs, {})
    record(frozen, runs[0], status)
    assert [run.run_id for run in frozen.unfinished()] == [runs[1].run_id]


def test_a_result_that_a_later_attempt_has_superseded_is_made_again(commands: Commands) -> None:
    run, _ = commands.plan()
    frozen = Frozen(commands.folder / "out", [run], {})
    early = RunRecord(frozen.run_dir(run), take(frozen.run_dir(run), "run", (1, 0)))
    record(frozen, run, "done", early)
    assert frozen.unfinished() == []
    take(frozen.run_dir(run), "run", (1, 1))
    assert frozen.unfinished() == [run]


def test_a_run_of_its_own_is_computed_as_it_was_begun(commands: Commands) -> None:
    (begun, _) = commands.plan("launcher.threads=1", "execution.micro_batch=4")
    (now, _) = commands.plan("launcher.threads=2", "execution.micro_batch=2", "execution.checkpoint_seconds=1")
    assert begun.run_id == now.run_id
    run_dir = commands.folder / "run"
    assert as_begun(now, run_dir) == now
    RunRecord(run_dir).begin(begun, {"data_hash": None})
    assert as_begun(now, run_dir).execution == begun.execution
    (run_dir / MANIFEST_FILE).write_text("{}")  # of a version that did not say
    assert as_begun(now, run_dir) == now


@pytest.mark.parametrize("name", [SPEC_FILE, MANIFEST_FILE, STATUS_FILE, METRICS_FILE])
def test_a_result_whose_record_is_damaged_is_made_again(name: str, commands: Commands) -> None:
    runs = commands.plan()
    frozen = Frozen(commands.folder / "out", runs, {})
    for run in runs:
        record(frozen, run, "done")
    assert frozen.unfinished() == []
    (frozen.run_dir(runs[1]) / name).write_text("{")
    assert frozen.unfinished() == [runs[1]]


def test_settings_that_make_no_sense() -> None:
    good = LocalLauncher(name="local", workers="auto", threads=1, device="auto", retries=0, stop_after=5)
    for change in ({"workers": 0}, {"workers": -2}, {"threads": 0}, {"retries": -1}):
        with pytest.raises(InputError, match=next(iter(change))):
            dataclasses.replace(good, **change)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert devices("cpu") == ["cpu"]
    if torch.cuda.is_available():
        assert devices("auto") == devices("cuda") == [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    else:
        assert devices("auto") == ["cpu"]
        with pytest.raises(InputError, match="no CUDA device"):
            devices("cuda")


def test_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_plan_counts_a_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_workers("cpu", threads=1) == available_cores()
    assert plan_workers("cpu", threads=10**6) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert plan_workers("cuda", threads=1) == 2


def record(frozen: Frozen, planned: PlannedRun, status: str, made: RunRecord | None = None) -> None:
    """Leave the record of a run that ended in `status`."""
    made = made or RunRecord(frozen.run_dir(planned))
    made.begin(planned, {"data_hash": None})
    values = dict.fromkeys(set(CURVE_COLUMNS) - {"run_id"}, 2.5)
    made.append({**values, "step": planned.spec.steps})
    made.set_status(status)


def _with_micro_batch(run, micro_batch):
    return dataclasses.replace(run, execution=dataclasses.replace(run.execution, micro_batch=micro_batch))

"""Expected against present, from whatever state the files of a sweep are in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from sweep.compose import compose
from sweep.launch.slurm.submission import Element, Submission, reserve, write_submission
from sweep.lease import hold
from sweep.plan import plan_sweep, write_plan
from sweep.record import RunRecord, write_status
from sweep.schema import CURVE_COLUMNS, METRICS_FILE, PLAN_FILE, RUNS_DIR, SPEC_FILE, InputError
from sweep.spec import PlannedRun
from sweep.status import Job, SweepStatus, sweep_status
from sweep.status_table import LISTED, TRACEBACKS, remarks, status_line, status_table, tracebacks
from sweep.stored import last_evaluation


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


@pytest.fixture
def plan(sweep_dir: Path) -> list[PlannedRun]:
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    write_plan(sweep_dir / PLAN_FILE, runs)
    return runs


def record(sweep_dir: Path, planned: PlannedRun, status: str, share: float = 1.0, error: str | None = None) -> Path:
    """A record that has come `share` of the way."""
    run_dir = sweep_dir / RUNS_DIR / planned.run_id
    run_dir.mkdir(parents=True)
    write_status(run_dir, status, attempts=1, error=error)
    step = int(planned.spec.steps * share)
    row = evaluation(step, planned.costs["flops"] * share)
    (run_dir / METRICS_FILE).write_text(json.dumps(row) + "\n")
    return run_dir


def evaluation(step: int, flops: float = 0.0) -> dict[str, float]:
    """A row of the metrics."""
    row = dict.fromkeys(CURVE_COLUMNS, 0.5) | {"step": step, "flops": flops, "test_loss": 2.5}
    del row["run_id"]
    return row


def printed(state: SweepStatus, everything: bool = False) -> list[str]:
    """Lines of the table."""
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(status_table(state, everything))
    return console.export_text().splitlines()


def submit(sweep_dir: Path, *jobs: tuple[str, list[PlannedRun]]) -> None:
    """A further submission of `jobs`, which are job ids and their runs."""
    elements = tuple(Element(job_id, tuple(run.run_id for run in runs), 60.0) for job_id, runs in jobs)
    write_submission(sweep_dir, Submission(reserve(sweep_dir), "2026-11-22T10:32:28", (), elements, 2, {}, {}))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """SLURM answers what it was seen to answer: a function of what squeue and sacct print."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def answers(squeue: str, sacct: str = "") -> None:
        for name, prints in (("squeue", squeue), ("sacct", sacct)):
            (folder / name).write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{prints}END\n")
            (folder / name).chmod(0o755)

    return answers


def test_a_fresh_plan_is_all_planned(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    state = sweep_status(sweep_dir)
    assert (state.expected, state.counts) == (len(plan), {"planned": len(plan)})
    assert state.flops_done == 0
    assert state.flops == sum(run.costs["flops"] for run in plan)


def test_each_run_shows_its_state_and_its_reason(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    record(sweep_dir, plan[0], "done")
    record(sweep_dir, plan[1], "failed", 0.5, "RuntimeError: no luck")
    record(sweep_dir, plan[2], "diverged", 0.5, "loss is not finite at step 9")
    cut_off = record(sweep_dir, plan[3], "running", 0.5)
    with hold(record(sweep_dir, plan[4], "running", 0.5), "run"):
        state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs[:6]] == ["done", "failed", "diverged", "interrupted", "running", "planned"]
    assert state.counts == {"planned": 3, "running": 1, "done": 1, "failed": 1, "diverged": 1, "interrupted": 1}
    assert state.runs[1].error == "RuntimeError: no luck"
    assert state.runs[3].steps_done == plan[3].spec.steps // 2
    shares = [1.0, 0.5, 0.5, 0.5, 0.5]
    assert state.flops_done == pytest.approx(sum(r.costs["flops"] * s for r, s in zip(plan, shares, strict=False)))

    lines = printed(state)
    assert "RuntimeError: no luck" in lines[1]  # what went wrong comes first
    assert cut_off.name in lines[2]
    assert f"{len(plan)} runs: 3 planned, 1 running, 1 done, 1 failed, 1 diverged, 1 interrupted" in status_line(state)


def test_json_holds_what_the_table_shows(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    record(sweep_dir, plan[0], "failed", error="why")
    state = json.loads(json.dumps(sweep_status(sweep_dir).to_dict()))
    assert state["counts"] == {"planned": len(plan) - 1, "failed": 1}
    assert {"run_id": plan[0].run_id, "status": "failed", "error": "why", "active": False}.items() <= state["runs"][
        0
    ].items()


def test_damaged_files_do_not_hide_the_rest(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    damaged = record(sweep_dir, plan[0], "done")
    (damaged / "status.json").write_text('{"status": "do')
    with (record(sweep_dir, plan[1], "running") / METRICS_FILE).open("a") as file:
        file.write('{"step": 99, "test_lo')
    stray = sweep_dir / RUNS_DIR / "stray"
    stray.mkdir()
    state = sweep_status(sweep_dir)
    assert [run.status for run in state.runs[:2]] == ["planned", "running"]
    assert state.runs[1].steps_done == plan[1].spec.steps
    assert len(state.runs) == len(plan)


def test_records_without_a_plan_are_shown(tmp_path: Path) -> None:
    planned = plan_sweep(compose("sweep", ["experiment=smoke"]))[0]
    run_dir = record(tmp_path, planned, "done")
    (run_dir / SPEC_FILE).write_text(json.dumps({"run_id": planned.run_id, **asdict(planned.spec)}))
    state = sweep_status(tmp_path)
    assert [(run.run_id, run.status, run.planned) for run in state.runs] == [(planned.run_id, "done", False)]
    assert "1 runs: 1 done" in status_line(state)


def test_the_newest_evaluation_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    rows = [evaluation(step) for step in range(1000)]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (last_evaluation(tmp_path) or {})["step"] == 999
    assert last_evaluation(tmp_path / "nowhere") is None


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a sweep directory"):
        sweep_status(tmp_path)


SQUEUE = "7_0|RUNNING|node1|None\n7_1|PENDING||Priority\n8|OUT_OF_MEMORY|node2|OutOfMemory\n"
SACCT = "8|OUT_OF_MEMORY|2026-11-22T10:32:28|node2|0:125\n9|CANCELLED by 0|2026-11-22T10:32:28|node1|0:0\n"


def test_runs_of_a_cluster_show_what_became_of_their_jobs(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm(SQUEUE, SACCT)
    submit(sweep_dir, ("7_0", plan[:2]), ("7_1", [plan[2]]), ("8", [plan[3]]), ("9", [plan[4]]), ("7_2", plan[5:7]))
    submit(sweep_dir, ("11", [plan[6]]))
    record(sweep_dir, plan[3], "running", 0.5)
    (record(sweep_dir, plan[5], "running") / "error.txt").write_text("Traceback\n  ...\nMemoryError: 3 GB\n")
    with hold(record(sweep_dir, plan[0], "running"), "run", claim=(1, 0)):
        state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs] == [
        "running", "queued", "queued", "lost", "cancelled", "lost", "lost", "planned"]  # fmt: skip
    jobs = [run.job for run in state.runs]
    assert jobs[0] == jobs[1] == Job("7_0", 1, "RUNNING", "node1", None, True)
    assert jobs[2] == Job("7_1", 1, "PENDING", None, "Priority", True)
    assert jobs[3] == Job("8", 1, "OUT_OF_MEMORY", "node2", None, False)
    assert jobs[6] == Job("11", 2, live=False)  # the last of two, both gone
    assert state.runs[5].error == "MemoryError: 3 GB"

    lines = printed(state)
    assert lines[0].split()[-2:] == ["job", "reason"]
    assert "8 OUT_OF_MEMORY node2" in lines[1]
    assert " 7_2 " in lines[2]
    assert "MemoryError: 3 GB" in lines[2]
    assert any("7_1 PENDING (Priority)" in line for line in lines)
    assert "8 runs: 1 planned, 1 running, 2 queued, 3 lost, 1 cancelled" in status_line(state)
    assert f"isoloss resubmit {sweep_dir} submits 3 again" in remarks(state)[0]
    assert remarks(state)[1:] == ["1 cancelled; the sweep's own command submits them again"]
    ended = Job("8", 1, "FAILED", "node2", "exit code 3:0", False)
    spaced = replace(state, sweep_dir="my sweep", runs=[replace(state.runs[3], job=ended)])
    assert any("8 FAILED node2 (exit code 3:0)" in line for line in printed(spaced))
    assert "isoloss resubmit 'my sweep' submits 1 again" in remarks(spaced)[0]
    done = replace(spaced, runs=[replace(state.runs[3], status="done")])
    assert remarks(done) == ["next: isoloss analyze 'my sweep'"]
    runs = json.loads(json.dumps(state.to_dict()))["runs"]
    assert {"shown": "queued", "status": "planned", "cancelled": False}.items() <= runs[2].items()
    assert runs[2]["job"] == {
        "id": "7_1",
        "submission": 1,
        "state": "PENDING",
        "node": None,
        "reason": "Priority",
        "live": True,
    }


def test_of_several_jobs_the_one_that_lives_counts(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm(SQUEUE)
    submit(sweep_dir, ("7_1", [plan[0]]), ("8", [plan[1]]))
    submit(sweep_dir, ("8", [plan[0]]), ("7_1", [plan[1]]))
    assert [run.job.id for run in sweep_status(sweep_dir).runs[:2] if run.job] == ["7_1", "7_1"]


def test_a_record_that_says_running_is_lost_with_its_job(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm("")
    submit(sweep_dir, ("8", plan[:2]))
    orphan, local = (record(sweep_dir, run, "running") for run in plan[:2])
    with hold(orphan, "run", claim=(1, 0)) as of_job, hold(local, "run") as of_local_sweep:
        write_status(orphan, "running", of_job)
        write_status(local, "running", of_local_sweep)
        state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs[:2]] == ["lost", "running"]


def test_a_failed_run_that_was_submitted_again_waits(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm("7|RUNNING|node1|None\n8|PENDING||Priority\n")
    submit(sweep_dir, ("7", plan[:3]))
    for run in plan[:3]:
        with hold(record(sweep_dir, run, "failed", 0.5, "ValueError: [no] luck"), "run", claim=(1, 0)) as lease:
            write_status(lease.directory, "failed", lease, failures=1)
    submit(sweep_dir, ("8", plan[1:2]), ("9", plan[2:3]))
    state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs[:3]] == ["failed", "queued", "failed"]
    assert "ValueError: [no] luck" in printed(state)[1]


def test_a_cancelled_run_is_shown_whatever_slurm_remembers(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm(SQUEUE)
    submit(sweep_dir, ("7_0", plan[:2]), ("8", plan[2:4]))
    for run, status in zip(plan, ("running", "done", "running", "failed"), strict=False):
        (record(sweep_dir, run, status) / "cancel").touch()
    assert [run.shown for run in sweep_status(sweep_dir).runs[:4]] == ["cancelled", "done", "cancelled", "failed"]


def test_where_slurm_does_not_answer_the_records_still_show(
    sweep_dir: Path, plan: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    submit(sweep_dir, ("7", plan[:4]))
    record(sweep_dir, plan[0], "done")
    record(sweep_dir, plan[1], "failed", error="why")
    with hold(record(sweep_dir, plan[2], "running"), "run", claim=(1, 0)):
        state = sweep_status(sweep_dir)
    assert [run.shown for run in state.runs[:5]] == ["done", "failed", "running", "unknown", "planned"]
    assert any("squeue is not found on this machine" in line for line in remarks(state))


def test_a_sweep_without_jobs_or_with_all_done_asks_nobody(
    sweep_dir: Path, plan: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    record(sweep_dir, plan[0], "done")
    assert sweep_status(sweep_dir).slurm_problem is None
    assert "job" not in printed(sweep_status(sweep_dir))[0].split()
    submit(sweep_dir, ("7", [plan[0]]))
    assert sweep_status(sweep_dir).slurm_problem is None


def test_a_sweep_that_stopped_early_says_why(
    sweep_dir: Path, plan: list[PlannedRun], slurm: Callable[..., None]
) -> None:
    slurm("7|COMPLETED|node1|None\n")
    submit(sweep_dir, ("7", plan[:1]))
    assert sweep_status(sweep_dir).stopped is None
    (sweep_dir / "slurm" / "stopped.json").write_text('{"reason": "5 runs failed alike", "when": "2026-11-22"}')
    state = sweep_status(sweep_dir)
    assert "the sweep stopped early: 5 runs failed alike" in remarks(state)
    assert (state.runs[0].shown, state.runs[0].error) == ("lost", "the sweep stopped before it")
    (sweep_dir / "slurm" / "stopped.json").write_text("{")
    assert "damaged" in remarks(sweep_status(sweep_dir))[0]


def test_notes_are_shown_briefly(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    run_dir = record(sweep_dir, plan[0], "done")
    write_status(run_dir, "done", notes=["micro-batch 4 instead of 8", "step-9 was damaged; step-8 was used"])
    state = sweep_status(sweep_dir)
    assert state.runs[0].notes == ("micro-batch 4 instead of 8", "step-9 was damaged; step-8 was used")
    assert "step-8 was used (and 1 before)" in printed(state)[-1]


def test_of_a_large_sweep_the_table_lists_what_wants_attention(sweep_dir: Path) -> None:
    small = plan_sweep(compose("sweep", ["experiment=smoke"]))
    runs = [replace(small[0], spec=replace(small[0].spec, seed=seed)) for seed in range(2 * LISTED)]
    write_plan(sweep_dir / PLAN_FILE, runs)
    record(sweep_dir, runs[0], "done")
    failed = record(sweep_dir, runs[1], "failed", error="why")
    state = sweep_status(sweep_dir)
    assert len(runs) > LISTED
    assert [line.split()[0] for line in printed(state)[1:]] == [failed.name]
    assert remarks(state) == [f"{len(runs) - 1} runs are not listed; --all lists them"]
    assert len(printed(state, everything=True)) == len(runs) + 1
    for run in runs[2:]:
        record(sweep_dir, run, "diverged")
    assert len(printed(sweep_status(sweep_dir))) == LISTED + 1


@pytest.mark.parametrize("name", ["../../outside", "/tmp", "..", "0123456789abcdeF"])
def test_a_planted_run_id_is_read_nowhere(sweep_dir: Path, plan: list[PlannedRun], name: str) -> None:
    outside = sweep_dir.parent / "outside"
    outside.mkdir()
    write_status(outside, "done", attempts=1, error=None)
    path = sweep_dir / PLAN_FILE
    path.write_text(path.read_text().replace(plan[0].run_id, name))
    with pytest.raises(InputError, match="is no run_id"):
        sweep_status(sweep_dir)


def test_a_run_that_is_a_link_out_of_the_sweep_is_not_followed(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    outside = sweep_dir.parent / "outside"
    outside.mkdir()
    write_status(outside, "done", attempts=1, error=None)
    (sweep_dir / RUNS_DIR).mkdir()
    (sweep_dir / RUNS_DIR / plan[0].run_id).symlink_to(outside)
    run = sweep_status(sweep_dir).runs[0]
    assert run.status == "planned"
    assert "is a link out of" in (run.error or "")


def test_all_runs_may_lie_on_other_storage(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    storage = sweep_dir.parent / "storage"
    storage.mkdir()
    (sweep_dir / RUNS_DIR).symlink_to(storage)
    record(sweep_dir, plan[0], "done")
    assert sweep_status(sweep_dir).runs[0].status == "done"


def test_a_damaged_plan_is_named_with_its_line(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    with (sweep_dir / PLAN_FILE).open("a") as file:
        file.write('{"run_id": "0123456789abcdef"}\n')
    with pytest.raises(InputError, match=rf"plan.jsonl:{len(plan) + 1} is damaged"):
        sweep_status(sweep_dir)


def test_tracebacks_are_shown_one_of_each_kind(sweep_dir: Path, plan: list[PlannedRun]) -> None:
    for i, planned in enumerate(plan[:5]):
        error = f"ValueError: row {i}" if i < 2 else f"KeyError: {'abcde'[i]}"
        RunRecord(sweep_dir / RUNS_DIR / planned.run_id).fail(error, f"Traceback (most recent call last):\n{error}\n")
    RunRecord(sweep_dir / RUNS_DIR / plan[5].run_id).fail("the text is too small", None)
    shown = tracebacks(sweep_status(sweep_dir))
    assert len(shown) == TRACEBACKS
    assert shown[0] == f"run {plan[0].run_id}:\nTraceback (most recent call last):\nValueError: row 0\n"
    assert "KeyError: c" in shown[1]

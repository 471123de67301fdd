"""Names of runs become folders of the sweep, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.compose import compose
from sweep.launch.freeze import Frozen
from sweep.plan import plan_sweep
from sweep.run_dir import matching, run_dir
from sweep.schema import RUNS_DIR, InputError

RUNS = ["00000000000000a1", "00000000000000a2", "b000000000000000"]


def test_a_run_is_named_by_the_start_of_its_id() -> None:
    assert matching(RUNS, "b") == matching(RUNS, RUNS[2]) == RUNS[2]
    with pytest.raises(InputError, match="the start of 2 run_ids"):
        matching(RUNS, "0000")


@pytest.mark.parametrize("given", ["", "..", "../../etc", "/etc/passwd", "B", "*", f"{RUNS[0]}0", f"{RUNS[0]}\n", "c"])
def test_what_is_no_run_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run of this sweep"):
        matching(RUNS, given)
    with pytest.raises(InputError, match="is no run_id"):
        run_dir(tmp_path, given)


def test_one_run_may_not_lead_out_of_the_sweep_but_all_may(tmp_path: Path) -> None:
    sweep_dir, storage, elsewhere = (tmp_path / name for name in ("sweep", "storage", "elsewhere"))
    for folder in (sweep_dir, storage, elsewhere):
        folder.mkdir()
    (sweep_dir / RUNS_DIR).symlink_to(storage)
    assert run_dir(sweep_dir, RUNS[0]) == sweep_dir / RUNS_DIR / RUNS[0]
    (storage / RUNS[1]).symlink_to(storage / RUNS[0])  # within
    assert run_dir(sweep_dir, RUNS[1]).name == RUNS[1]
    (storage / RUNS[2]).symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link out of"):
        run_dir(sweep_dir, RUNS[2])


def test_no_launcher_writes_through_a_link_out_of_the_sweep(tmp_path: Path) -> None:
    runs = plan_sweep(compose("sweep", ["experiment=smoke"]))
    (tmp_path / "sweep" / RUNS_DIR).mkdir(parents=True)
    (tmp_path / "sweep" / RUNS_DIR / runs[3].run_id).symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link out of"):
        Frozen(tmp_path / "sweep", runs, {}).unfinished()

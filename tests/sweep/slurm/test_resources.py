"""What is asked of the cluster: times from the plan, sizes from the launcher, shell text that does no harm."""

from __future__ import annotations

import dataclasses
import math
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sweep.accounting import count_flops
from sweep.compose import compose
from sweep.config import read_config
from sweep.estimate import (
    CPU_RATE,
    PEAK,
    USEFUL,
    Machine,
    estimate_seconds,
    machine,
    measurement_key,
    pass_costs,
    stack_phases,
)
from sweep.launch.slurm.resources import (
    LEAST_MINUTES,
    START_UP_SECONDS,
    again_file,
    ask_cluster,
    check_path,
    job_name,
    sbatch_parameters,
    time_limit,
)
from sweep.launcher import LocalLauncher, SlurmLauncher
from sweep.plan import plan_sweep, plan_totals
from sweep.schema import InputError
from sweep.spec import ModelSpec
from sweep.stacking import stacks


def launcher(*overrides: str) -> SlurmLauncher:
    made = read_config(compose("sweep", ["launcher=slurm", *(f"launcher.{text}" for text in overrides)])).launcher
    assert isinstance(made, SlurmLauncher)
    return made


def parameters(*overrides: str, minutes: int = 10) -> dict[str, Any]:
    return sbatch_parameters(launcher(*overrides), minutes, "sweep", Path("/code"), Path("/jobs"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ("cuda", "gpu", 1)),
        (("gpu_type=h100", "gpus_per_run=8", "nodes=2"), ("cuda", "h100", 8)),
        (("gpus_per_run=0",), ("cpu", "cpu", 1)),
        (("gpus_per_run=0", "ranks=4"), ("cpu", "cpu", 4)),
        (("device=cpu", "gpus_per_run=1"), ("cpu", "cpu", 1)),
    ],
)
def test_a_plan_is_for_the_nodes_and_not_for_this_machine(
    overrides: tuple[str, ...], expected: tuple[str, str, int]
) -> None:
    found = machine(launcher(*overrides))
    assert (found.device, found.kind, found.ranks) == expected
    assert not found.here
    given = ["experiment=quick", "launcher=slurm", *(f"launcher.{text}" for text in overrides)]
    runs = plan_sweep(compose("sweep", given))
    alone = found.device == "cuda" and found.ranks > 1
    assert all((run.execution.micro_batch is None) == (run.stack is None and found.device == "cuda") for run in runs)
    assert all(run.stack is None for run in runs) or not alone
    for members in stacks(runs):
        assert [run.costs["seconds"] for run in members] == estimate_seconds(members, found, {})[0]
    said = plan_totals(runs, 64, found)["time_basis"]
    assert "launcher.flops_per_s" in said
    assert (f"over {found.ranks} ranks" in said) == (found.ranks > 1)


def test_measurements_of_this_machine_count_only_for_it(plan_tiny: Any) -> None:
    run = plan_tiny(execution={"micro_batch": 4})
    there, here = Machine("cpu", "cpu", here=False), Machine("cpu", "cpu")
    [phase] = stack_phases([run])
    known = {measurement_key(run, phase, "cpu"): 100.0}
    assert estimate_seconds([run], here, known)[1]
    assert not estimate_seconds([run], there, known)[1]


def test_arithmetic_is_shared_by_ranks_and_goes_with_the_rate() -> None:
    [run] = plan_sweep(
        compose(
            "sweep", ["launcher=slurm", "grid=single", "model.shape=12x768", "batch_tokens=524288", "precision=bf16"]
        )
    )[:1]
    tiny = ModelSpec("gpt2", 2, 16, 1, 16, 64, run.spec.model.n_ctx, run.spec.model.vocab_size)
    [[one], [shared], [faster]] = (
        estimate_seconds([run], found, {})[0]
        for found in (Machine("cuda", "a100"), Machine("cuda", "a100", ranks=4), Machine("cuda", "h100"))
    )
    assert shared == pytest.approx(one / 4, rel=0.15)
    assert faster < one / 2
    # a narrow model moves more than it computes, unless a rate is given
    narrow = dataclasses.replace(run, spec=dataclasses.replace(run.spec, model=tiny))
    assert pass_costs(narrow, Machine("cuda", "h100")).token > 10 * count_flops(tiny).total / (USEFUL * 989e12)
    assert pass_costs(narrow, Machine("cuda", "h100", flops_per_s=1e12)).token == count_flops(tiny).total / 1e12
    fast = Machine("cuda", "gpu", flops_per_s=1e18)
    assert fast.flops_per_second("bf16", 1) == 1e18
    assert Machine("cuda", "h100").flops_per_second("bf16", 1) == USEFUL * PEAK["h100"]["bf16"]
    assert Machine("cpu", "cpu").flops_per_second("fp32", 3) == 3 * CPU_RATE


def test_the_local_launcher_plans_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = read_config(compose("sweep", ["launcher.device=cpu"])).launcher
    assert isinstance(typed, LocalLauncher)
    assert machine(typed) == Machine("cpu", "cpu")
    # what NVIDIA's driver says of its first GPU
    folder = tmp_path / "0000:18:00.0"
    folder.mkdir()
    monkeypatch.setattr("sweep.estimate.DRIVER", tmp_path)
    gpu = dataclasses.replace(typed, device="cuda")
    assert machine(gpu) == Machine("cuda", "gpu")
    for model, kind in (
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA RTX A1000", "gpu"),
        ("NVIDIA L40S", "gpu"),
    ):
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 0\nGPU UUID: \t GPU-0\n")
        assert machine(gpu) == Machine("cuda", kind)


@pytest.mark.parametrize(
    ("text", "said"),
    [("gpu_type=h10", "v100, a100, h100, h200, gpu"), ("device=cuda launcher.gpus_per_run=0", "gpus_per_run")],
)
def test_machines_that_cannot_be_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        machine(launcher(*text.replace("launcher.", "").split()))


def test_the_time_limit_is_a_margin_over_the_estimate_and_leaves_time_to_save() -> None:
    usual = launcher("signal_seconds=120", "time_margin=2", "max_minutes=600")
    lead = 3  # the signal two minutes before the end, and a minute early
    assert time_limit(usual, 0.0) == LEAST_MINUTES + lead
    assert time_limit(usual, 3600.0) == math.ceil(2 * (3600 + START_UP_SECONDS) / 60) + lead
    assert time_limit(usual, 1e6) == 600
    assert time_limit(launcher("time_limit_minutes=7"), 1e6) == 7
    for bad in ("time_limit_minutes=3", "max_minutes=2"):
        with pytest.raises(InputError, match=f"launcher.{bad.replace('=', ' ')} .*signal_seconds"):
            time_limit(launcher(bad), 60.0)


def test_sizes_are_those_of_a_node() -> None:
    asked = parameters(
        "gpus_per_run=8", "nodes=2", "memory_gb=1.5", "partition=a", "qos=b", "account=c", "constraint=d"
    )
    assert (asked["nodes"], asked["ntasks_per_node"], asked["gpus_per_node"], asked["cpus_per_task"]) == (2, 4, 4, 4)
    assert (asked["mem"], asked["partition"], asked["qos"], asked["account"], asked["constraint"]) == (
        "1536M", "a", "b", "c", "d",
    )  # fmt: skip
    assert "--cpus-per-task=4" in asked["srun_args"]
    on_cpu = parameters("gpus_per_run=0", "threads=3")
    assert on_cpu["cpus_per_task"] == 3
    assert not {"gpus_per_node", "mem", "partition", "qos", "account", "constraint"} & on_cpu.keys()


def test_a_users_lines_come_verbatim_and_before_ours() -> None:
    asked = parameters(
        "setup=['module load \"x y\"','source $HOME/v/bin/activate']", "srun_args=['--container-image=a b']"
    )
    assert asked["setup"][:2] == ['module load "x y"', "source $HOME/v/bin/activate"]
    assert asked["setup"][2].startswith("export PYTHONPATH=/code$")
    assert asked["srun_args"][-1] == "--container-image=a b"


@pytest.mark.parametrize(
    "name", ["it's", "a b", "$(touch PWNED)", "`touch PWNED`", 'say "x"', "a;touch PWNED", "*", "#x"]
)
def test_paths_reach_python_whole(tmp_path: Path, name: str) -> None:
    code = tmp_path / name / "code"
    lines = sbatch_parameters(launcher(), 10, name, code, tmp_path)["setup"]
    done = subprocess.run(
        ["bash", "-c", "\n".join([*lines, 'printf %s "$PYTHONPATH"'])],
        env={"PYTHONPATH": "/before", "PATH": "/usr/bin:/bin"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{code}:/before"
    assert list(tmp_path.iterdir()) == []
    assert shlex.quote(job_name(name)) == job_name(name)
    assert job_name(name).startswith("isoloss")
    check_path(code)


@pytest.mark.parametrize(
    ("code", "file", "again"),
    [(0, False, False), (1, False, False), (85, False, True), (140, False, True), (137, True, True)],
)
def test_a_job_is_queued_again_when_it_asks(tmp_path: Path, code: int, file: bool, again: bool) -> None:
    folder = tmp_path / "it's $(a) folder"
    folder.mkdir()
    if file:
        again_file(folder, "17").touch()
    lines = sbatch_parameters(launcher(), 10, "sweep", Path("/code"), folder)["teardown"]
    done = subprocess.run(
        ["bash", "-c", "\n".join(['scontrol() { echo "$@"; }', f"(exit {code})", *lines])],
        env={"SLURM_JOB_ID": "17", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout == ("requeue 17\n" if again else "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["100%", "a\\b", "a:b", "a\nb"])
def test_paths_that_slurm_would_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="choose another folder"):
        check_path(Path("/sweeps") / name)


def test_further_options_of_sbatch() -> None:
    asked = parameters("sbatch={reservation: course, exclusive: true, mail_user: 'a b', comment: null}")
    assert asked["additional_parameters"] == {
        "requeue": True, "reservation": "course", "exclusive": True, "mail-user": "a b",
    }  # fmt: skip
    for bad, said in (("{output: /x}", "itself"), ("{'a b': 1}", "no option"), ('{a: "b\nc"}', "no option")):
        with pytest.raises(InputError, match=f"launcher.sbatch.*{said}"):
            sbatch_parameters(
                dataclasses.replace(launcher(), sbatch=compose_mapping(bad)), 10, "sweep", Path("/code"), Path("/jobs")
            )


def compose_mapping(text: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(text.replace("\n", "\\n")))


def test_without_a_cluster_the_launcher_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="login node"):
        ask_cluster()

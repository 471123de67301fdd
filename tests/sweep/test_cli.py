"""The command line: help, exit codes, one-line errors, and that planning needs no torch."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import Commands

from sweep import cli
from sweep.cli import main
from sweep.run_dir import matching
from sweep.schema import InputError

VERBS = [*cli.VERBS, *cli.ANALYSIS_VERBS]
HEAVY = {"torch", "transformers", "datasets", "wandb", "pandas", "matplotlib"}


@pytest.fixture
def commands(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return Commands(tmp_path, tmp_path_factory.getbasetemp() / "cache")


def test_help_lists_every_verb_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"isoloss {verb} " in text


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # argparse's way of ending
        assert main([verb, "--help"]) == 0
    assert re.search(rf"example:\s+isoloss {verb} ", capsys.readouterr().out)


def test_the_examples_of_composing_verbs_compose(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    examples = re.findall(r"isoloss ((?:plan|sweep) .*)", capsys.readouterr().out)
    assert len(examples) == 2
    for example in examples:
        assert main([*shlex.split(example), "--cfg", "job"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["name"] == "quick"


def test_the_example_of_logs_is_a_run_of_the_example_of_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    start = re.findall(r"isoloss logs sweeps/quick (\w+)", capsys.readouterr().out)
    assert len(start) == 1
    assert main(["plan", "experiment=quick", "--json", "-"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert matching([run["run_id"] for run in runs], start[0])


def test_help_plan_and_status_import_nothing_heavy(tmp_path: Path) -> None:
    script = f"""
import contextlib, json, sys
from pathlib import Path
from sweep.cli import main
from sweep.plan import plan_sweep, write_plan
from sweep.compose import compose
write_plan(Path("s/plan.jsonl"), plan_sweep(compose("sweep", ["experiment=smoke"])))
helps = [[verb, "--help"] for verb in {VERBS}]
plans = ["plan", "experiment=smoke"], ["plan", "experiment=smoke", "--json", "p.json"], ["plan", "launcher=slurm"]
run_id = json.loads(Path("s/plan.jsonl").read_text().split("\\n")[0])["run_id"]
looks = ["status", "s"], ["status", "s", "--all", "--json", "s.json"], ["logs", "s", run_id[:8]], ["cancel", "s"]
for arguments in (["--help"], *helps, *plans, *looks):
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 0, arguments
heavy = {HEAVY} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["counts"] == {"planned": 8}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweeep"], "did you mean sweep?"),
        (["plan", "--jsn", "x"], "--jsn"),
        (["plan", "experiment=smok"], "did you mean smoke?"),
        (["plan", "optimizer.lrr=3"], "did you mean optimizer.lr?"),
        (["plan", "batch_tokens=100"], "not a multiple of model.n_ctx"),
        (["plan", "model.shape=2x30"], "d_model 30"),
        (["plan", "--config-dir", "nowhere"], "nowhere"),
        (["plan", "launcher.workers=0"], "launcher.workers"),
        (["plan", "--json", "/dev/null/plan.json"], "/dev/null"),
        (["sweep", "launcher.workers=0"], "launcher.workers"),
        (["sweep", "sweep_dir=/dev/null/first"], "/dev/null"),
        (["sweep", "launcher.worker=2"], "launcher.worker"),
        (["train", "optimizer.lrr=3"], "did you mean optimizer.lr?"),
        (["train", "batch_tokens=100"], "not a multiple of model.n_ctx"),
        (["train", "launcher=slurm"], "use isoloss sweep"),
        (["plan", "launcher=slurm", "launcher.workers=2"], "launcher.workers"),
        (["plan", "launcher=slurm", "launcher.nodes=3"], "does not divide over launcher.nodes 3"),
        (["plan", "launcher=slurm", "--measure"], "launcher.flops_per_s"),
        (["status", "nowhere"], "not a sweep directory"),
        (["cancel", "nowhere"], "not a sweep directory"),
        (["resubmit", "nowhere"], "no job was ever submitted"),
        (["logs", "nowhere", "4bb2"], "not a sweep directory"),
        (["logs", "nowhere"], "RUN"),
        (["collect", "nowhere"], "nowhere"),
        (["sync", "nowhere"], "no records"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_train_leaves_the_warnings_of_the_training_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "batch_tokens=100"]) == 2  # refused after Hydra has set up its logging
    from sweep import checkpoint

    assert not checkpoint.log.disabled
    assert checkpoint.log.isEnabledFor(logging.WARNING)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "status", interrupted)
    assert main(["status", "sweeps/quick"]) == 130
    assert capsys.readouterr().err == "isoloss: interrupted\n"


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOLOSS_TRACEBACK", "1")
    with pytest.raises(InputError):
        main(["plan", "optimizer.lrr=3"])


def test_plan_prints_what_it_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "made" / "plan.json"
    assert main(["plan", "experiment=smoke", "launcher.workers=1", "--json", str(target)]) == 0
    table = capsys.readouterr().out
    content = json.loads(target.read_text())
    assert content["totals"]["runs"] == len(content["runs"]) == 8
    for run in content["runs"]:
        assert run["run_id"][:8] in table
    assert f"{content['totals']['flops']:.3g} FLOP" in table
    stacks = {run["stack"] for run in content["runs"]} - {None}
    assert f"({sum(run['stack'] is not None for run in content['runs'])} in {len(stacks)} stacks)" in table
    assert main(["plan", "--json", "-", "experiment=smoke", "launcher.workers=1"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_a_reader_that_leaves_is_no_error(commands: Commands) -> None:
    plan = commands.start("plan", "experiment=kaplan", "--json", "-")
    assert plan.stdout is not None
    assert plan.stderr is not None
    plan.stdout.read(1)
    plan.stdout.close()
    assert plan.wait(timeout=60) == 0
    assert plan.stderr.read() == ""


def test_train_takes_hydra_multirun_and_leaves_only_records(commands: Commands) -> None:
    text = Path(json.__file__).parent
    arguments = ["model.n_ctx=16", "model.d_head=8", "model.shape=1x8", "horizon.steps=8", "schedule.warmup_steps=2"]
    arguments += ["data=text", f"data.files=['{text}/*.py']", "data.name=json", "data.test_tokens=512", "tracking=none"]
    code, out, err = commands.run("train", "-m", *arguments, "batch_tokens=128", "seed=0,1", "sweep_dir=out")
    assert code == 0, err
    records = sorted((commands.folder / "out" / "runs").iterdir())
    assert [json.loads((record / "spec.json").read_text())["seed"] for record in records] in ([0, 1], [1, 0])
    assert all(f"{record.name}  done" in out for record in records)
    assert {path.name for path in commands.folder.iterdir()} == {"conf", "out"}
    assert main(["status", str(commands.folder / "out")]) == 0

"""Real small training: accumulation, resuming, ways to end, precision, the record it leaves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweep import checkpoint
from sweep.batches import Sequences, test_sequences
from sweep.evaluate import evaluation_steps
from sweep.record import read_record, read_steps
from sweep.schema import CHECKPOINT_DIR, MANIFEST_FILE, METRICS_FILE, SPEC_FILE, STATUS_FILE, InputError
from sweep.session import Member
from sweep.stack import Stack
from sweep.train import train_run, train_runs


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve(run_dir: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in read_record(run_dir).rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical curves, steps and final states."""
    assert curve(one) == curve(other)
    steps, others = read_steps(one), read_steps(other)
    for name in steps:
        assert steps[name].tobytes() == others[name].tobytes(), name
    states = [checkpoint.load_newest(folder / CHECKPOINT_DIR) for folder in (one, other)]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].names() == states[1].names()
    for name in states[0].names():
        assert torch.equal(states[0].tensor(name), states[1].tensor(name)), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_learns_and_leaves_a_complete_record(plan_tiny, tiny_corpus, tmp_path: Path, family: str) -> None:
    planned = plan_tiny(steps=120, family=family, execution={"eval_points_per_decade": 4})
    seen: list[dict[str, Any]] = []
    assert train_run(planned, tmp_path, tiny_corpus, "cpu", seen.append) == "done"
    record = read_record(tmp_path)
    assert record.rows == seen
    assert [row["step"] for row in seen] == evaluation_steps(planned.spec, planned.execution)
    assert abs(read_steps(tmp_path)["train_loss"][0] - math.log(256)) < 0.8
    assert seen[-1]["test_loss"] < 3.7
    assert seen[-1]["tokens"] == planned.spec.tokens
    assert record.status["epochs"] == pytest.approx(120 * 8 / ((120_000 - 1) // 32))
    assert record.manifest["data_hash"] == "tiny"
    steps = read_steps(tmp_path)
    assert all(len(values) == 120 for values in steps.values())
    between = steps["train_loss"][seen[-2]["step"] : seen[-1]["step"]]
    assert seen[-1]["train_loss"] == pytest.approx(float(between.mean()), rel=1e-6)
    assert seen[-1]["grad_norm"] == pytest.approx(float(steps["grad_norm"][-1]))
    assert steps["lr"][:6].tolist() == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01])


def test_accumulation_equals_no_accumulation(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    steps = {}
    for micro in (8, 3, 1):  # three: the last micro-batch is smaller
        planned = plan_tiny(steps=12, execution={"micro_batch": micro})
        train_run(planned, tmp_path / str(micro), tiny_corpus, "cpu")
        steps[micro] = read_steps(tmp_path / str(micro))
    for micro in (3, 1):
        np.testing.assert_allclose(steps[micro]["train_loss"], steps[8]["train_loss"], rtol=2e-5)
        np.testing.assert_allclose(steps[micro]["grad_norm"], steps[8]["grad_norm"], rtol=2e-3)


def test_first_loss_is_that_of_the_first_sequences(plan_tiny, tiny_corpus) -> None:
    stack = Stack([plan_tiny(sequences=4)], tiny_corpus, "cpu")
    samples = torch.from_numpy(Sequences(tiny_corpus.train, 32, 0).samples(0, 4))
    with torch.no_grad():
        logits = stack.learner.forward(stack.learner.flat.weights, samples[None, :, :-1])[0]
        expected = torch.nn.functional.cross_entropy(logits, samples[:, 1:].reshape(-1))
    stack.advance(4, lambda: False)
    [run] = stack.runs
    assert run.series["train_loss"][0] == pytest.approx(float(expected), rel=1e-6)


CHILD = """
import pickle, sys
from pathlib import Path
from sweep.train import train_run
planned, corpus = pickle.loads(Path(sys.argv[1]).read_bytes())
train_run(planned, Path(sys.argv[2]), corpus, "cpu")
"""


def test_killed_run_goes_on_bit_identically(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=400, weight_average=0.25, execution={"checkpoint_seconds": 0.02, "micro_batch": 3})
    job, whole, killed = tmp_path / "job", tmp_path / "whole", tmp_path / "killed"
    job.write_bytes(pickle.dumps((planned, tiny_corpus)))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(job), str(killed)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    give_up = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < give_up:
        if any(int(note.stem.split("-")[1]) >= 150 for note in (killed / CHECKPOINT_DIR).glob("step-*.json")):
            child.kill()
            break
        time.sleep(0.001)
    assert child.wait() == -signal.SIGKILL
    found = checkpoint.load_newest(killed / CHECKPOINT_DIR)
    assert found is not None
    assert 0 < found.meta["step"] < 400
    assert train_run(planned, killed, tiny_corpus, "cpu") == "done"
    assert train_run(planned, whole, tiny_corpus, "cpu") == "done"
    assert_same_run(killed, whole)
    assert read_record(killed).status["attempts"] == 2


def test_sigterm_checkpoints_and_the_run_goes_on_from_there(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=60)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] >= 20:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert train_run(planned, tmp_path / "stopped", tiny_corpus, "cpu", interrupt) == "running"
    assert signal.getsignal(signal.SIGTERM) is before
    record = read_record(tmp_path / "stopped")
    assert record.status["status"] == "running"
    assert 20 <= record.status["step"] < 30
    assert train_run(planned, tmp_path / "stopped", tiny_corpus, "cpu") == "done"
    assert train_run(planned, tmp_path / "whole", tiny_corpus, "cpu") == "done"
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("first", [0, 7 * 8, 7 * 8 + 4])  # the last within a batch
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_restored_state_goes_on_bit_identically(
    plan_tiny, tiny_corpus, tmp_path: Path, first: int, optimizer: str
) -> None:
    planned = plan_tiny(name=optimizer, weight_average=0.5, execution={"micro_batch": 2})
    stack, other = (Stack([planned], tiny_corpus, "cpu") for _ in range(2))
    stack.advance(first, lambda: False)
    tensors, meta, _ = stack.state(stack.runs[0])
    checkpoint.save(tmp_path, stack.runs[0].step, tensors, meta, into=stack.runs[0].into)
    saved = checkpoint.load_newest(tmp_path)
    assert saved is not None
    other.restore(other.runs[0], saved)
    for each in (stack, other):
        each.advance(20 * 8, lambda: False)
    assert stack.runs[0].series == other.runs[0].series
    assert torch.equal(stack.learner.flat.values, other.learner.flat.values)
    assert torch.equal(stack.learner.average, other.learner.average)


def test_damaged_checkpoint_falls_back_to_the_one_before(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=60, execution={"checkpoint_seconds": 0.0})
    assert train_run(planned, tmp_path / "whole", tiny_corpus, "cpu") == "done"
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    (tmp_path / "damaged" / CHECKPOINT_DIR / "step-60-a0.safetensors").write_bytes(b"cut")
    assert train_run(planned, tmp_path / "damaged", tiny_corpus, "cpu") == "done"
    assert_same_run(tmp_path / "whole", tmp_path / "damaged")


def test_full_disk_costs_checkpoints_but_not_the_run(plan_tiny, tiny_corpus, tmp_path: Path, small_disk: Path) -> None:
    """The disk is full from step 10 to step 30 but for the record's own little files."""
    planned = plan_tiny(steps=60, execution={"checkpoint_seconds": 0.0})
    filler = small_disk / "filler"

    def watch(row: dict[str, Any]) -> None:
        if row["step"] >= 30:
            filler.unlink(missing_ok=True)
        elif row["step"] >= 10 and not filler.exists():
            free = os.statvfs(small_disk).f_bavail * 4096
            filler.write_bytes(bytes(free - 64 * 1024))

    assert train_run(planned, small_disk / "run", tiny_corpus, "cpu", watch) == "done"
    assert train_run(planned, tmp_path / "whole", tiny_corpus, "cpu") == "done"
    assert_same_run(small_disk / "run", tmp_path / "whole")
    notes = read_record(small_disk / "run").status["notes"]
    assert any("no checkpoint at step" in note and "No space left" in note for note in notes)
    assert not list(small_disk.rglob("*.part"))


def test_full_disk_at_the_end_fails_the_attempt_and_says_how_to_mend_it(
    plan_tiny, tiny_corpus, small_disk: Path
) -> None:
    planned, filler = plan_tiny(steps=60), small_disk / "filler"

    def watch(row: dict[str, Any]) -> None:
        if row["step"] == 60:
            filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 64 * 1024))

    with pytest.raises(OSError, match=r"free some space, then the same command goes on.*step-60"):
        train_run(planned, small_disk / "run", tiny_corpus, "cpu", watch)
    filler.unlink()
    assert train_run(planned, small_disk / "run", tiny_corpus, "cpu") == "done"


def test_divergence_is_seen_at_the_same_step_wherever_it_was_looked_for(plan_tiny, tiny_corpus) -> None:
    planned = plan_tiny(steps=200, lr=3.0, grad_clip=0.0, weight_decay=0.0)
    found = set()
    for block in (1, 7, 64):
        stack = Stack([planned], tiny_corpus, "cpu")
        [run] = stack.runs
        reason = None
        while reason is None:
            stack.advance(min(200, run.step + block) * planned.spec.batch_sequences, lambda: False)
            reason = run.diverged()
        found.add(reason)
    assert len(found) == 1


@pytest.mark.parametrize(("lr", "clip"), [(1e4, 1.0), (3.0, 0.0), (1e30, 1.0)])
def test_divergence_is_a_recorded_result(plan_tiny, tiny_corpus, tmp_path: Path, lr: float, clip: float) -> None:
    planned = plan_tiny(steps=200, lr=lr, grad_clip=clip, weight_decay=0.0)
    assert train_run(planned, tmp_path, tiny_corpus, "cpu") == "diverged"
    record = read_record(tmp_path)
    assert record.status["status"] == "diverged"
    assert "not finite" in record.status["error"] or "rose" in record.status["error"]
    assert record.status["step"] < 200
    assert all(math.isfinite(row["test_loss"]) for row in record.rows)


def test_a_run_too_short_to_confirm_it_diverges_all_the_same(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=15, lr=3.0, grad_clip=0.0, weight_decay=0.0)
    assert train_run(planned, tmp_path, tiny_corpus, "cpu") == "diverged"
    assert "by step 15" in read_record(tmp_path).status["error"]


def test_want_of_memory_is_a_recorded_result(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(n_layer=1, d_ff=2**42)  # 256 TiB of weights
    assert train_run(planned, tmp_path, tiny_corpus, "cpu") == "out_of_memory"
    assert "memory" in read_record(tmp_path).status["error"]


def test_evaluations_and_the_average_do_not_touch_the_training(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    plans = {
        "plain": plan_tiny(steps=40),
        "often": plan_tiny(steps=40, execution={"eval_points_per_decade": 30}),
        "average": plan_tiny(steps=40, weight_average=0.5),
    }
    for name, planned in plans.items():
        train_run(planned, tmp_path / name, tiny_corpus, "cpu")
    losses = {name: read_steps(tmp_path / name)["train_loss"].tobytes() for name in plans}
    assert losses["plain"] == losses["often"] == losses["average"]
    assert len(curve(tmp_path / "often")) > len(curve(tmp_path / "plain"))
    assert curve(tmp_path / "average")[-1]["test_loss"] != curve(tmp_path / "plain")[-1]["test_loss"]


def test_average_is_that_of_the_weights_after_each_step(plan_tiny, tiny_corpus) -> None:
    stack = Stack([plan_tiny(steps=12, weight_average=0.5)], tiny_corpus, "cpu")
    history = []
    for step in range(1, 13):
        stack.advance(step * 8, lambda: False)
        history.append(stack.learner.flat.values[0].double().clone())
    # window 0.5 means eta 2: update s weighs s (s + 1), over their sum n (n + 1) (n + 2) / 3
    expected = sum(s * (s + 1) * values for s, values in enumerate(history, 1)) / (12 * 13 * 14 / 3)
    torch.testing.assert_close(stack.learner.average[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_bf16_follows_fp32(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train_run(plan_tiny(steps=40, precision=precision), tmp_path / precision, tiny_corpus, "cpu")
    full, half = (read_steps(tmp_path / precision)["train_loss"] for precision in ("fp32", "bf16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half[:10], full[:10], rtol=2e-3)  # later, rounding has grown into another path


def test_deterministic_mode_is_put_back(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=6, execution={"deterministic": True, "threads": 2})
    before = torch.get_num_threads()
    assert train_run(planned, tmp_path, tiny_corpus, "cpu") == "done"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_run_follows_the_eager_one_without_recompiling(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    for compiled in (False, True):
        planned = plan_tiny(steps=6, n_layer=1, execution={"compile": compiled, "micro_batch": 4})
        assert train_run(planned, tmp_path / str(compiled), tiny_corpus, "cpu") == "done"
    eager, fused = (read_steps(tmp_path / name)["train_loss"] for name in ("False", "True"))
    np.testing.assert_allclose(fused, eager, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_stack_is_compiled_again_only_when_a_run_leaves(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    members = [
        Member(plan_tiny(steps=steps, seed=seed, n_layer=1, execution={"compile": True}), tmp_path / str(seed))
        for seed, steps in enumerate((6, 6, 9))
    ]
    outcomes: list[str | Exception] = []
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    train_runs(members, tiny_corpus, "cpu", lambda member, outcome: outcomes.append(outcome))
    assert outcomes == ["done"] * 3
    assert graphs["unique_graphs"] - before == 2  # of three runs, and of one


def test_saved_model_reproduces_the_recorded_loss(plan_tiny, tiny_corpus, tmp_path: Path, capfd) -> None:
    from transformers import AutoModelForCausalLM

    planned = plan_tiny(steps=30, weight_average=0.5, execution={"save_model": True})
    train_run(planned, tmp_path, tiny_corpus, "cpu")
    assert "".join(capfd.readouterr()) == ""  # no progress bar of its own
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    sequences = torch.from_numpy(test_sequences(tiny_corpus.test, 32, planned.spec.data.test_tokens))
    with torch.no_grad():
        logits = model(input_ids=sequences[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), sequences[:, 1:].reshape(-1))
    assert float(loss) == pytest.approx(curve(tmp_path)[-1]["test_loss"], rel=1e-5)


def test_a_damaged_record_is_mended_from_the_last_checkpoint(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=20)
    train_run(planned, tmp_path, tiny_corpus, "cpu")
    whole = curve(tmp_path)
    for name in (SPEC_FILE, MANIFEST_FILE, STATUS_FILE, METRICS_FILE):
        (tmp_path / name).write_text("{")
    assert train_run(planned, tmp_path, tiny_corpus, "cpu") == "done"
    assert curve(tmp_path) == whole


def test_changed_text_is_refused_before_anything_is_written(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = dataclasses.replace(plan_tiny(), data_hash="frozen")
    with pytest.raises(InputError, match="has changed since the plan"):
        train_run(planned, tmp_path / "run", tiny_corpus, "cpu")
    assert not (tmp_path / "run").exists()


def test_more_passes_than_allowed_are_refused(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_epochs"):
        train_run(plan_tiny(steps=10_000), tmp_path, tiny_corpus, "cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_cuda_follows_the_cpu(plan_tiny, tiny_corpus, tmp_path: Path, precision: str) -> None:
    train_run(plan_tiny(steps=40), tmp_path / "cpu", tiny_corpus, "cpu")
    train_run(plan_tiny(steps=40, precision=precision), tmp_path / "cuda", tiny_corpus, "cuda")
    cpu, cuda = (read_steps(tmp_path / name)["train_loss"] for name in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda, cpu, rtol=1e-3 if precision == "fp32" else 0.03)
    assert json.loads((tmp_path / "cuda" / "manifest.json").read_text())["driver"].startswith("CUDA")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_micro_batch_shrinks_until_it_fits_the_cuda_device(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=1, sequences=3072, schedule={"warmup_steps": 0})  # one batch's logits alone: 100 MB
    train_run(planned, tmp_path / "roomy", tiny_corpus, "cuda")
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 150e6
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        assert train_run(planned, tmp_path / "tight", tiny_corpus, "cuda") == "done"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    roomy, tight = (read_record(tmp_path / name) for name in ("roomy", "tight"))
    assert roomy.status["micro_batch"] == 3072
    assert tight.status["micro_batch"] < 3072
    assert tight.rows[-1]["train_loss"] == pytest.approx(roomy.rows[-1]["train_loss"], rel=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_reproducible_in_deterministic_mode(plan_tiny, tiny_corpus, tmp_path: Path) -> None:
    planned = plan_tiny(steps=40, precision="bf16", execution={"deterministic": True})
    for name in ("one", "other"):
        assert train_run(planned, tmp_path / name, tiny_corpus, "cuda") == "done"
    assert_same_run(tmp_path / "one", tmp_path / "other")

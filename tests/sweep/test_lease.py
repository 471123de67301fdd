"""Leases, with real processes: killed, stopped, racing, superseded; and holders on other machines, under odd clocks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import until
from faults import fill

from sweep import lease as module
from sweep.atomic import place, replacing
from sweep.holder import Claim, Holder
from sweep.lease import SILENT_SECONDS, STALE_SECONDS, Lease, LeaseLost, hold, is_held, newest_number, take
from sweep.schema import InputError

HOLD = """
import pathlib, sys, time
from sweep.lease import take
claim = (int(sys.argv[2]), 0) if len(sys.argv) > 2 else None
lease = take(pathlib.Path(sys.argv[1]), "run", claim)
print(lease.number, flush=True)
time.sleep(120)
"""

# Takes the lease again and again, and while it holds it writes its name beside it, alone.
RACE = """
import os, pathlib, sys, time
from sweep.lease import take
folder, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
inside = folder / "inside"
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    lease = take(folder, "run", wait_seconds=60)
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    with (folder / "numbers").open("a") as file:
        file.write(f"{lease.number}\\n")
    lease.check()
    inside.unlink()
    lease.release()
"""


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that hold the lease of `tmp_path`, under the claim (n, 0) where n is given."""
    started: list[subprocess.Popen[str]] = []

    def start(*submission: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), *map(str, submission)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline().strip().isdigit()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def elsewhere(claim: Claim | None = None) -> Holder:
    """A holder on another machine, so that its process cannot be seen."""
    return dataclasses.replace(Holder.this_process(claim), space="another boot", host="node7", pid=1)


def leave(folder: Path, number: int, holder: Holder) -> Path:
    """Make `holder` hold the lease of `folder`."""
    path = folder / f"lease.{number}"
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return path


class Time:
    """A clock that goes when one sleeps, and `jump`s as it is told, by the number of the sleep."""

    def __init__(self, jumps: dict[int, float] | None = None, each: Callable[[], None] = lambda: None) -> None:
        self.now, self.slept, self.sleeps = 1e6, 0.0, 0
        self.jumps, self.each = jumps or {}, each

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds + self.jumps.get(self.sleeps, 0.0)
        self.sleeps += 1
        assert self.sleeps < 10_000, "waits for ever"
        self.each()


def test_a_lease_is_refused_by_name_and_ends_with_its_holder(tmp_path: Path, holders) -> None:
    holder = holders()
    with pytest.raises(InputError, match=f"run .* is in use by process {holder.pid} on "):
        take(tmp_path, "run")
    assert is_held(tmp_path)
    assert files(tmp_path) == ["lease.1"]
    holder.kill()
    holder.wait()
    assert not is_held(tmp_path)
    with hold(tmp_path, "run") as lease:
        assert lease.number == 2
        assert files(tmp_path) == ["lease.2"]
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert files(tmp_path) == ["lease.2"]


def test_a_killed_holder_that_nobody_has_waited_for_is_dead(tmp_path: Path, holders) -> None:
    holder = holders()
    holder.kill()
    until(lambda: not is_held(tmp_path))
    assert holder.returncode is None  # a zombie process until now
    assert take(tmp_path, "run").number == 2


def test_a_process_that_got_the_number_of_a_dead_one_does_not_hold_its_lease(tmp_path: Path) -> None:
    leave(tmp_path, 4, dataclasses.replace(Holder.this_process(), start="1"))
    assert not is_held(tmp_path)
    assert take(tmp_path, "run").number == 5


def test_a_waiting_process_gets_the_lease_when_it_is_released(tmp_path: Path) -> None:
    lease = take(tmp_path, "run")
    taken: list[Lease] = []
    waiter = threading.Thread(target=lambda: taken.append(take(tmp_path, "run", wait_seconds=60)))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    lease.release()
    waiter.join(30)
    assert [lease.number for lease in taken] == [2]


def test_a_stopped_process_keeps_its_lease_unless_a_later_claim_supersedes_it(tmp_path: Path, holders) -> None:
    holder = holders(3)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseLost):  # of an earlier submission, which has been superseded
        take(tmp_path, "run", (2, 9))
    for claim in (None, (3, 0)):
        with pytest.raises(InputError, match=f"process {holder.pid}"):
            take(tmp_path, "run", claim)
    lease = take(tmp_path, "run", (3, 1))
    assert lease.number == 2
    assert files(tmp_path) == ["lease.2"]
    with pytest.raises(LeaseLost):
        take(tmp_path, "run", (3, 0), wait_seconds=60)
    lease.check()


def test_a_superseded_attempt_can_write_nothing(tmp_path: Path) -> None:
    earlier = take(tmp_path, "run", (1, 0))
    earlier.check()
    assert not earlier.lost
    later = take(tmp_path, "run", (1, 1))
    later.check()
    with pytest.raises(LeaseLost, match="taken over"):
        earlier.check()
    assert earlier.lost
    target = tmp_path / "file"
    with pytest.raises(LeaseLost), replacing(target, earlier) as stream:
        stream.write(b"late")
    assert files(tmp_path) == ["lease.2"]
    earlier.release()  # of no effect
    assert is_held(tmp_path)
    with replacing(target, later) as stream:
        stream.write(b"in time")
    assert target.read_text() == "in time"


def test_a_rename_held_up_after_its_check_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = take(tmp_path, "run", (1, 0))
    part = tmp_path / "file.x.part"
    part.write_text("late")
    look = earlier.check

    def overtaken() -> None:
        look()  # in force; now the process is stopped, and a later attempt begins
        monkeypatch.setattr(earlier, "check", look)
        take(tmp_path, "run", (1, 1))
        part.unlink()

    monkeypatch.setattr(earlier, "check", overtaken)
    with pytest.raises(LeaseLost):
        place(part, tmp_path / "file", earlier)
    assert files(tmp_path) == ["lease.2"]


def test_the_beat_touches_the_file_and_notices_a_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    lease = take(tmp_path, "run", (1, 0))
    os.utime(lease.path, (1, 1))
    until(lambda: lease.path.stat().st_mtime > 1)
    take(tmp_path, "run", (2, 0)).release()
    until(lambda: lease.lost)
    assert files(tmp_path) == ["lease.2"]


@pytest.mark.parametrize("seed", range(3))
def test_of_racing_processes_one_at_a_time_holds_the_lease(tmp_path: Path, seed: int) -> None:
    rounds, count = 40, 3 + seed
    command = [sys.executable, "-c", RACE, str(tmp_path), str(rounds)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, err = racer.communicate(timeout=120)
        assert (racer.returncode, err) == (0, ""), out
    numbers = [int(line) for line in (tmp_path / "numbers").read_text().split()]
    assert numbers == sorted(set(numbers))  # each number once, ever higher
    assert len(numbers) == rounds * count
    assert files(tmp_path) == [f"lease.{numbers[-1]}", "numbers"]


def test_of_many_that_find_it_free_at_once_one_gets_it(tmp_path: Path) -> None:
    for trial in range(30):
        folder = tmp_path / str(trial)
        barrier, outcomes = threading.Barrier(4), []

        def attempt(folder: Path = folder, barrier: threading.Barrier = barrier, outcomes: list = outcomes) -> None:
            barrier.wait()
            try:
                outcomes.append(take(folder, "run", wait_seconds=0).number)
            except InputError:
                outcomes.append(None)

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes, key=str) == [1, None, None, None]


def test_a_silent_holder_on_another_machine_loses_it_after_a_minute(tmp_path: Path) -> None:
    leave(tmp_path, 1, elsewhere())
    time = Time()
    lease = take(tmp_path, "run", clock=time.clock, sleep=time.sleep)
    assert lease.number == 2
    assert SILENT_SECONDS <= time.slept <= SILENT_SECONDS + 1


def test_a_holder_on_another_machine_that_touches_its_file_keeps_it(tmp_path: Path) -> None:
    path = leave(tmp_path, 1, elsewhere())
    time = Time(each=lambda: time.sleeps % 20 or os.utime(path, (time.sleeps, time.sleeps)))  # type: ignore[func-returns-value]
    with pytest.raises(InputError, match="process 1 on node7"):
        take(tmp_path, "run", clock=time.clock, sleep=time.sleep)
    assert time.slept < SILENT_SECONDS / 2  # once seen touching, it is known to live
    with pytest.raises(InputError, match="process 1 on node7"):
        take(tmp_path, "run", wait_seconds=500, clock=time.clock, sleep=time.sleep)
    assert files(tmp_path) == ["lease.1"]


def test_a_real_process_that_cannot_be_seen_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.0)
    quick = HOLD.replace("import pathlib", "import sweep.lease\nsweep.lease.BEAT_SECONDS = 0.1\nimport pathlib")
    apart = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", quick, str(tmp_path)]
    process = subprocess.Popen(apart, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline():
        pytest.skip(f"may not make a pid namespace: {process.communicate()[1]}")
    with pytest.raises(InputError, match="is in use by process 1 on "):  # its number in there
        take(tmp_path, "run", wait_seconds=4)
    process.kill()
    process.communicate()
    assert is_held(tmp_path)  # for all that one look can tell
    assert take(tmp_path, "run").number == 2


@pytest.mark.parametrize("jump", [1e9, 3600.0, -3600.0, -1e9])
def test_a_jump_of_the_clock_neither_kills_a_holder_nor_keeps_a_dead_one(tmp_path: Path, jump: float) -> None:
    path = leave(tmp_path, 1, elsewhere())
    often = dict.fromkeys((3, 50, 90), jump)
    time = Time(often, each=lambda: time.sleeps % 40 or os.utime(path, (time.sleeps, time.sleeps)))  # type: ignore[func-returns-value]
    with pytest.raises(InputError, match="node7"):
        take(tmp_path, "run", wait_seconds=100, clock=time.clock, sleep=time.sleep)
    time = Time(often)
    assert take(tmp_path, "run", clock=time.clock, sleep=time.sleep).number == 2
    assert SILENT_SECONDS * 0.8 <= time.slept <= SILENT_SECONDS * 1.2


def test_the_holders_clock_is_not_compared_with_ours(tmp_path: Path) -> None:
    for number, touched in ((1, 1.0), (2, 4e9)):  # a machine in 1970, and one in 2096
        os.utime(leave(tmp_path, number, elsewhere()), (touched, touched))
        time = Time()
        take(tmp_path, "run", clock=time.clock, sleep=time.sleep).release()
        assert SILENT_SECONDS <= time.slept <= SILENT_SECONDS + 1
        (tmp_path / f"lease.{number + 1}").unlink()


def test_a_look_without_waiting_judges_by_the_last_touch(tmp_path: Path) -> None:
    path = leave(tmp_path, 1, elsewhere())
    os.utime(path, (1e9, 1e9))
    for off in (0, STALE_SECONDS - 1, 1 - STALE_SECONDS):
        assert is_held(tmp_path, now=lambda off=off: 1e9 + off)
    for off in (STALE_SECONDS + 1, -STALE_SECONDS - 1):
        assert not is_held(tmp_path, now=lambda off=off: 1e9 + off)


def test_a_later_claim_does_not_wait_for_another_machine(tmp_path: Path) -> None:
    leave(tmp_path, 1, elsewhere((4, 0)))
    time = Time()
    assert take(tmp_path, "run", (4, 1), clock=time.clock, sleep=time.sleep).number == 2
    assert time.slept == 0


@pytest.mark.parametrize("content", ["", '{"pid": 3, "sta', "[1]", "{}", '{"pid": 1, "claim": 3}'])
def test_a_lease_whose_taker_died_while_writing_it_is_free_after_a_minute(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.7").write_text(content)
    time = Time()
    assert take(tmp_path, "run", clock=time.clock, sleep=time.sleep).number == 8
    assert SILENT_SECONDS <= time.slept <= SILENT_SECONDS + 1


def test_a_slow_taker_gives_way_to_one_that_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw lease 1 free, others took and ended 2 and 3, and its own 2 is no longer the newest."""
    take(tmp_path, "run").release()
    real = module._create

    def slow(directory: Path, number: int, holder: Holder) -> Lease | None:
        monkeypatch.setattr(module, "_create", real)
        take(tmp_path, "run").release()
        take(tmp_path, "run").release()
        return real(directory, number, holder)

    monkeypatch.setattr(module, "_create", slow)
    assert take(tmp_path, "run").number == 4
    assert files(tmp_path) == ["lease.4"]


def test_other_names_are_no_leases(tmp_path: Path) -> None:
    for name in ("lease.x", "lease.", "lease.3.part", "lease.²", "release.9"):
        (tmp_path / name).touch()
    assert newest_number(tmp_path) == 0
    assert newest_number(tmp_path / "absent") == 0
    assert not is_held(tmp_path / "absent")


def test_a_refused_beginning_leaves_nothing(tmp_path: Path) -> None:
    new, there = tmp_path / "a" / "b", tmp_path / "there"
    there.mkdir()
    for folder in (new, there):
        with pytest.raises(InputError), hold(folder, "sweep"):
            raise InputError("no runs")
    assert files(tmp_path) == ["there"]
    assert files(there) == []
    with pytest.raises(FileNotFoundError), hold(new, "sweep"):
        shutil.copy(tmp_path / "absent", shutil.copy(__file__, new / "plan"))
    assert files(new) == ["lease.1", "plan"]
    with pytest.raises(InputError), hold(new, "sweep"):
        raise InputError("again")
    assert files(new) == ["lease.2", "plan"]


def test_a_directory_that_vanishes_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    real = module._newest

    def looked(directory: Path):
        monkeypatch.setattr(module, "_newest", real)
        found = real(directory)
        shutil.rmtree(directory, ignore_errors=True)  # the process that held it was refused, and cleared up
        return found

    folder.mkdir()
    monkeypatch.setattr(module, "_newest", looked)
    assert take(folder, "sweep").number == 1


def test_an_unreadable_lease_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "lease.1").mkdir()  # cannot be opened as a file
    time = Time()
    assert not is_held(tmp_path)
    with pytest.raises(OSError):
        take(tmp_path, "run", clock=time.clock, sleep=time.sleep)
    assert time.slept >= SILENT_SECONDS


def test_a_full_disk_refuses_a_lease_and_lets_go_of_one(small_disk: Path) -> None:
    held, free = (take(small_disk / name, "run") for name in ("held", "free"))
    free.release()
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        take(small_disk / "free", "run")
    assert files(small_disk / "free") == ["lease.1"]
    held.release()
    assert held.path.read_text() == "free"
    ballast.unlink()
    assert take(small_disk / "free", "run").number == 2

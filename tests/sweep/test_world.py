"""Who a process's ranks are, what they tell each other, and that none waits for one that is gone."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from ranks import run_ranks

from sweep.schema import InputError
from sweep.world import SINGLE, PeerFailed, World, first_host, join, meeting_point

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07,9-12],cpu1",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("n[3-5]", "n3"),
        ("rack[2-3]n[07,9],login", "rack2n07"),
        ("n[1,5]-ib", "n1-ib"),
    ],
)
def test_first_host_of_slurms_notation(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_ranks_of_torchrun_and_of_srun() -> None:
    torchrun = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "there", "MASTER_PORT": "29"}
    assert meeting_point(torchrun) == (World(2, 4, 0), "tcp://there:29")
    found = meeting_point(STEP)
    assert found is not None
    world, url = found
    assert world == World(3, 4, 1)
    assert url.startswith("tcp://gpu07:2")
    assert meeting_point(STEP | {"SLURM_PROCID": "0"})[1] == url  # type: ignore[index]
    others = [{"SLURM_JOB_ID": "1235"}, {"SLURM_STEP_ID": "3"}, {"SLURM_RESTART_COUNT": "1"}]
    urls = {meeting_point(STEP | other)[1] for other in others}  # type: ignore[index]
    assert len(urls | {url}) == 4


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        },  # a batch script
        {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},  # a shell of salloc
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
    ],
)
def test_a_process_of_its_own_stays_single(environment: dict[str, str], monkeypatch) -> None:
    assert meeting_point(environment) is None
    for name in [*STEP, "RANK", "WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join() as world:
        assert world is SINGLE


@pytest.mark.parametrize(("count", "size"), [(8, 3), (7, 4), (2, 4), (0, 2), (5, 1)])
def test_shares_are_even_and_cover_all(count: int, size: int) -> None:
    shares = [list(range(count))[World(rank, size).share(count)] for rank in range(size)]
    assert [thing for share in shares for thing in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_ones_own() -> None:
    tensor = torch.ones(2)
    assert SINGLE.first(lambda: 5) == SINGLE.broadcast(5) == 5
    assert (SINGLE.each(lambda: 5), SINGLE.most(1, 2.5), SINGLE.device("cuda:3")) == ([5], [1, 2.5], "cuda:3")
    assert SINGLE.sum_(tensor) is tensor
    with pytest.raises(ZeroDivisionError), SINGLE.together():
        _fail(SINGLE, "")
    assert not SINGLE.broken


def _fail(world: World, text: str) -> None:
    raise ZeroDivisionError(text)


class Odd(Exception):
    """Cannot be sent: made again from its message alone it lacks the second argument."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


def talk(world: World) -> list[object]:
    """What three ranks say and hear, in one process each."""
    heard: list[object] = [world.broadcast(10 + world.rank), world.each(lambda: 10 + world.rank)]
    heard.append(world.most(world.rank, -world.rank))
    heard.append(world.sum_(torch.tensor([1.0, world.rank])).tolist())

    def fails_on(rank: int, error: Exception) -> int:
        if world.rank == rank:
            raise error
        return world.rank

    for action in (
        lambda: world.first(lambda: fails_on(0, InputError("first"))),
        lambda: world.each(lambda: fails_on(2, OSError(28, "full", "there"))),
        lambda: world.each(lambda: fails_on(1, Odd("a", "b"))),
    ):
        try:
            with world.together():
                action()
        except Exception as error:
            heard.append(f"{type(error).__name__} {error}")
    heard += [world.broken, world.broadcast("still there")]
    try:
        with world.together():
            if world.rank == 1:
                _fail(world, "by one")
            world.sum_(torch.ones(1))
    except Exception as error:
        heard.append(f"{type(error).__name__} {error}")
    return [*heard, world.broken]


def test_what_ranks_tell_each_other() -> None:
    zero, one, two = run_ranks(3, talk)
    alike = [10, [10, 11, 12], [2.0, 0.0], [3.0, 3.0]]
    alike += ["InputError first", "OSError [Errno 28] full: 'there'", "RuntimeError Odd: a", False, "still there"]
    cause = "rank 1: ZeroDivisionError: by one"
    assert zero == [*alike, f"PeerFailed {cause}", True]
    assert one == [*alike, "ZeroDivisionError by one", True]
    assert two[:-2] == alike  # it may find rank 0 gone, who kept the cause
    assert two[-1]


def lose_one(world: World) -> tuple[str, bool]:
    """Rank 1 is killed while the others wait for it."""
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with world.together():
            world.sum_(torch.ones(1))
    except RuntimeError as error:
        return type(error).__name__, world.broken
    return "nothing", world.broken


def test_ranks_do_not_wait_for_one_that_was_killed() -> None:
    zero, one, two = run_ranks(3, lose_one)
    assert one is None
    for kind, broken in (zero, two):
        assert kind == PeerFailed.__name__
        assert broken

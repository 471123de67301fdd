"""When runs fail alike, and when a sweep is stopped for it."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.launch.failures import alike, common_failure, ended_for_good, failed_for_good


@pytest.mark.parametrize(
    "errors",
    [
        ["ValueError: no"],
        ["OSError: [Errno 5] I/O error: '/a/b/runs/0123456789abcdef/status.json'",
         "OSError: [Errno 5] I/O error: '/a/b/runs/fedcba9876543210/status.json'"],
        ["RuntimeError: step 12 of 1.5e+3 at 0x7f12", "RuntimeError: step 7 of 2e9 at 0xffe0"],
        ["worker killed by signal 9"] * 5,
        ["KeyError: ./out/x", "KeyError: ../there/y", "KeyError: ~/z"],
    ],
)  # fmt: skip
def test_numbers_and_paths_make_no_difference(errors: list[str]) -> None:
    assert alike(errors) == errors[0]


@pytest.mark.parametrize(
    "errors",
    [
        [],
        ["ValueError: no", "TypeError: no"],
        ["RuntimeError: decade", "RuntimeError: facade"],  # words of hexadecimal digits alone
        ["KeyError: 'lr'", "KeyError: 'seed'"],
        ["ValueError: no"] * 4 + ["ValueError: yes"],
    ],
)
def test_other_words_do(errors: list[str]) -> None:
    assert alike(errors) is None


def test_a_sweep_whose_first_runs_all_fail_alike_is_hopeless() -> None:
    failed = [("failed", f"KeyError: {i}") for i in range(4)]
    assert common_failure(failed, 4) == "the first 4 runs that ended have all failed with: KeyError: 0"
    assert common_failure(failed[:3], 4) is None
    assert common_failure([], 1) is None
    for status in ("done", "diverged", "out_of_memory"):
        assert common_failure([*failed, (status, None)], 4) is None
    assert common_failure([*failed, ("failed", "TypeError")], 4) is None
    assert common_failure([("failed", None)] * 2, 2) == "the first 2 runs that ended have all failed with: unknown"


def test_what_ended_for_good_in_a_submission() -> None:
    def status(status: str, failures: int = 0, submission: int | None = 3, **more: Any) -> dict[str, Any]:
        claim = None if submission is None else [submission, 0]
        return {"status": status, "failures": failures, "claim": claim, "error": f"{status} {failures}", **more}

    assert ended_for_good(
        [
            status("failed", 3),
            status("failed", 2),  # is tried again
            status("failed", 1, retry=False),
            status("done"),
            status("running", 2),
            status("done", submission=2),
            status("failed", 3, submission=None),
            {"status": "failed", "failures": 9},
        ],
        retries=2,
        submission=3,
    ) == [("failed", "failed 3"), ("failed", "failed 1"), ("done", "done 0")]
    assert failed_for_good({"status": "failed", "failures": 1}, retries=0)
    assert not failed_for_good({"status": "failed", "failures": 4, "halved_in": [1, 2]}, retries=2)
    assert failed_for_good({"status": "failed", "failures": 5, "halved_in": [1, 2]}, retries=2)
    assert not failed_for_good({"status": "running", "failures": 9}, retries=0)

"""What a job asks of the cluster: from the plan's estimates and the group `launcher` to the parameters of sbatch."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.launcher import SlurmLauncher
from sweep.schema import InputError

START_UP_SECONDS = 60.0  # of a job: imports from a shared file system, connecting ranks
LEAST_MINUTES = 5  # of a time limit, before the lead of the signal
SIGNAL_EARLY_SECONDS = 60  # by which SLURM may send a signal before its time
REQUEUE = 85  # exit code of a job that wants to be queued again
UNHEARD = 128 + 12  # of one that SIGUSR2 ended before it could listen
OWN_OPTIONS = frozenset({"array", "output", "error", "open-mode", "signal", "requeue", "no-requeue", "wrap", "wait"})


@dataclass(frozen=True)
class Cluster:
    """What the cluster's configuration says that a submission has to heed."""

    array_size: int  # elements of an array at most
    kill_wait: int  # seconds between SIGTERM and SIGKILL of a job that is cancelled
    name: str = ""


def ask_cluster() -> Cluster:
    """The cluster of this host. Raises InputError where there is none or it does not answer."""
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"launcher=slurm: scontrol does not work here ({error}); submit from a login node of the cluster, or take "
            "launcher=local"
        ) from error
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    wait = re.search(r"^KillWait\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    name = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE)
    if size is None or wait is None:
        said = " ".join(done.stderr.split()) or "no MaxArraySize or KillWait in its configuration"
        raise InputError(f"launcher=slurm: the cluster does not answer ({said}); try again when it does")
    return Cluster(max(1, int(size[1])), int(wait[1]), name[1] if name else "")


def time_limit(launcher: SlurmLauncher, seconds: float) -> int:
    """Minutes of a job whose runs are estimated to take `seconds`. Raises InputError where the limit that is set leaves
    no time before the signal to save."""
    lead = math.ceil((launcher.signal_seconds + SIGNAL_EARLY_SECONDS) / 60)
    if launcher.time_limit_minutes is not None:
        minutes, name = launcher.time_limit_minutes, "time_limit_minutes"
    else:
        estimated = math.ceil(launcher.time_margin * (START_UP_SECONDS + seconds) / 60)
        minutes, name = min(launcher.max_minutes, max(LEAST_MINUTES, estimated) + lead), "max_minutes"
    if minutes <= lead:
        raise InputError(
            f"launcher.{name} {minutes} is no longer than the {lead} minutes before its end at which a job may be told "
            f"to save (launcher.signal_seconds {launcher.signal_seconds}); raise it, or lower that"
        )
    return minutes


def sbatch_parameters(launcher: SlurmLauncher, minutes: int, name: str, code: Path, folder: Path) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor for jobs of `minutes` that run the packages in `code` and keep their files
    in `folder`. Raises InputError for options of sbatch that the launcher sets itself."""
    ranks = launcher.ranks_per_run // launcher.nodes
    cpus = launcher.cpus_per_rank or max(launcher.threads, 4 if launcher.gpus_per_run else 1)
    srun_args = [f"--cpus-per-task={cpus}"]  # which srun does not take from sbatch
    if launcher.ranks_per_run > 1:
        # a rank that ended early ends the others, which could not go on, but not before they have said what they know
        srun_args += ["--kill-on-bad-exit=0", "--wait=60"]
    asked = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "gpus_per_node": launcher.gpus_per_run // launcher.nodes or None,
        "mem": None if launcher.memory_gb is None else f"{math.ceil(launcher.memory_gb * 1024)}M",
    }
    return {
        **{key: value for key, value in asked.items() if value is not None},
        "job_name": job_name(name),
        "time": minutes,
        "nodes": launcher.nodes,
        "ntasks_per_node": ranks,
        "cpus_per_task": cpus,
        "signal_delay_s": launcher.signal_seconds,
        "array_parallelism": launcher.parallel,
        "setup": [*launcher.setup, *_use_code(code)],
        "teardown": _queue_again(folder),
        "srun_args": [*srun_args, *launcher.srun_args],
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own mark, which some clusters refuse
        "additional_parameters": {"requeue": True, **_further(launcher.sbatch or {})},
    }


def job_name(name: str) -> str:
    """`name` with what SLURM or a shell may trip over replaced."""
    return f"isoloss-{re.sub('[^A-Za-z0-9._-]+', '-', name).strip('-')[:64]}".rstrip("-")


def check_path(sweep_dir: Path) -> None:
    """Raises InputError where the path of `sweep_dir` holds what SLURM's file names or PYTHONPATH give a meaning to."""
    if bad := set(str(sweep_dir)) & set("%\\:\n\r"):
        named = " ".join(repr(character) for character in sorted(bad))
        raise InputError(
            f"sweep_dir {str(sweep_dir)!r} holds {named}, which SLURM reads as a sign; choose another folder"
        )


def _use_code(code: Path) -> list[str]:
    """Lines of shell by which Python imports the packages from `code`, rather than those installed or those in the
    working directory."""
    return [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONSAFEPATH=1"]


def again_file(folder: Path, job_id: str) -> Path:
    """What a job leaves in `folder` to be queued again whatever its exit code, which is the largest of its ranks'."""
    return folder / f"{job_id}.again"


def _queue_again(folder: Path) -> list[str]:
    """Lines of shell after the job's command, outside of any container, where the commands of SLURM are at hand."""
    left = f'{shlex.quote(str(again_file(folder, "")).removesuffix(".again"))}"$SLURM_JOB_ID".again'
    return [
        "isoloss_code=$?",
        f"if rm {left} 2>/dev/null || [ $isoloss_code -eq {REQUEUE} ] || [ $isoloss_code -eq {UNHEARD} ]; then",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $isoloss_code",
    ]


def _further(options: dict[str, Any]) -> dict[str, Any]:
    further = {}
    for key, value in options.items():
        name = str(key).replace("_", "-").lstrip("-")
        if name in OWN_OPTIONS:
            raise InputError(f"launcher.sbatch.{key}: isoloss sets this option of sbatch itself; leave it out")
        if not re.fullmatch("[a-z][a-z0-9-]*", name) or "\n" in str(value):
            raise InputError(
                f"launcher.sbatch.{key}={value!r} is no option of sbatch; write e.g. {{reservation: course}}"
            )
        if value is not None and value is not False:
            further[name] = value
    return further

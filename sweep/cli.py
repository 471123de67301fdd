"""The command `isoloss`: its overview, its exit codes, and who does which verb."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sweep.schema import RUNS_DIR, InputError
from sweep.verbs import cluster, records, training
from sweep.verbs.common import RunsFailed

USAGE = """\
isoloss: measure scaling laws of language models, from a sweep of training runs to figures.

usage: isoloss VERB ...        isoloss VERB --help shows each verb's options and an example

sweeps (key=value are Hydra overrides of the configuration in configs/)
  plan     what a sweep would run and cost     isoloss plan experiment=quick
  sweep    train every run of a sweep          isoloss sweep experiment=quick
  train    train one run                       isoloss train model.shape=2x32 batch_tokens=2048 horizon.steps=200
  status   expected against present            isoloss status sweeps/quick
  collect  records to runs and curves tables   isoloss collect sweeps/quick
  sync     mirror the records to W&B           isoloss sync sweeps/quick --project scaling

on a cluster (launcher=slurm)
  cancel   all jobs of a sweep, or some runs   isoloss cancel sweeps/quick
  resubmit what has failed or is lost          isoloss resubmit sweeps/quick
  logs     where a run's output lies           isoloss logs sweeps/quick 4bb2

analysis
  analyze  laws, figures and report.html       isoloss analyze sweeps/quick
  figures  draw figures                        isoloss figures published --out figures
  fit      one law to any table                isoloss fit parametric runs.csv --bootstrap 1000 --json fit.json
  predict  best model for a budget or loss     isoloss predict sweeps/quick/analysis/fits.json --flops 1e14

Exit codes: 0 done; 1 a run or fit failed; 2 the input is unusable (the message says how to mend it); 130 Ctrl-C.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # `isoloss plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("isoloss: interrupted", file=sys.stderr)
        return 130
    except (InputError, RunsFailed) as error:
        if os.environ.get("ISOLOSS_TRACEBACK"):
            raise
        print(f"isoloss: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except OSError as error:
        if error.filename is None or os.environ.get("ISOLOSS_TRACEBACK"):
            raise
        print(f"isoloss: {error.filename}: {error.strerror}; check the path, its permissions and the space left",
              file=sys.stderr)  # fmt: skip
        return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(f"isoloss {version('isoloss')}")
        return 0
    if verb in VERBS:
        return VERBS[verb](rest)
    if verb in ANALYSIS_VERBS:
        return _analysis(verb, rest)
    known = [*VERBS, *ANALYSIS_VERBS]
    close = difflib.get_close_matches(verb, known, 1)
    raise InputError(
        f"unknown verb {verb}" + (f"; did you mean {close[0]}?" if close else f"; verbs are {', '.join(known)}")
    )


def _analysis(verb: str, argv: list[str]) -> int:
    """A verb of the analysis, which reads tables only: the records of a sweep directory are collected first."""
    from analysis.cli.verbs import run

    if not {"-h", "--help"} & set(argv):
        for argument in argv:
            if (Path(argument) / RUNS_DIR).is_dir():
                records.collect_records(Path(argument))
    return run(verb, argv)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "plan": training.plan,
    "sweep": training.sweep,
    "train": training.train,
    "status": records.status,
    "collect": records.collect,
    "sync": records.sync,
    "cancel": cluster.cancel,
    "resubmit": cluster.resubmit,
    "logs": cluster.logs,
}
ANALYSIS_VERBS = ("analyze", "figures", "fit", "predict")

if __name__ == "__main__":
    sys.exit(main())

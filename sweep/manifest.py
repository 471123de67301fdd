"""What a run was made with: code, packages, machine, data. Never the environment as a whole, which may hold keys."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweep.corpus import Corpus

PACKAGES = ("isoloss", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy")
SLURM_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_NODELIST")


def describe(corpus: Corpus, device: str, unique_tokens: int) -> dict[str, Any]:
    """The manifest of a run that starts now; `unique_tokens` are those of one pass over the training split."""
    from sweep.device import device_name, driver

    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data_hash": corpus.data_hash,
        "unique_tokens": unique_tokens,
        "bytes_per_token": corpus.bytes_per_token,
        "device": device_name(device),
        "driver": driver(device),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _packages(),
        "git": _git(),
        "slurm": {name: os.environ[name] for name in SLURM_VARIABLES if name in os.environ},
        "argv": sys.argv,
    }


@lru_cache(maxsize=1)
def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@lru_cache(maxsize=1)
def _git() -> dict[str, Any]:
    """Commit of the checkout this code runs from and whether it has uncommitted changes; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment inside another project's checkout
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}

"""What a run was made with: code, packages, machine, data. Never the environment as a whole, which may hold keys."""

from __future__ import annotations

import importlib.metadata
import json
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
PACKAGED = ("sweep", "analysis", "configs")  # the packages of isoloss, folders side by side
CODE_FILE = "code.json"  # beside them in a snapshot: what `code_version` said where it was made, and its hash


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
        "git": code_version(),
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
def code_version() -> dict[str, Any]:
    """What code this is: the commit of the checkout it runs from, and whether that has uncommitted changes or new code;
    for a snapshot what its code.json says; empty outside both."""
    root = code_root()

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        return dict(json.loads((root / CODE_FILE).read_text()))
    except OSError:
        pass
    try:
        git("ls-files", "--error-unmatch", "sweep/manifest.py")  # else an environment inside another's checkout
        new = [f"{name}/**.py" for name in PACKAGED]
        changed = git("status", "--porcelain", "-uno") or git("ls-files", "--others", "--exclude-standard", "--", *new)
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}


def code_root() -> Path:
    """The folder that holds the packages of this code."""
    return Path(__file__).resolve().parent.parent

"""Where measurements and token files that may be rebuilt are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache: $ISOLOSS_CACHE, else $XDG_CACHE_HOME/isoloss, else ~/.cache/isoloss. It need not exist yet."""
    if own := os.environ.get("ISOLOSS_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "isoloss"
    return Path.home() / ".cache" / "isoloss"

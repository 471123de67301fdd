"""Configurations from the YAML groups in `configs/` and command-line overrides, through Hydra.

compose("sweep", ["experiment=quick", "optimizer.lr_factor=2"])
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sweep.config import RUN_KEYS, Block, cleared, flatten, grid_blocks
from sweep.schema import InputError
from sweep.spec import suggest


def packaged_configs() -> Path:
    """Folder of the configurations that come with isoloss, beside the package in a clone and in an installation."""
    return Path(__file__).resolve().parent.parent / "configs"


def compose(name: Literal["sweep", "train"], overrides: list[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Compose `configs/NAME.yaml` with Hydra overrides, all interpolations resolved, as plain data.

    `config_dir` is a folder of the user's own groups, searched besides the packaged ones. Overriding one way of
    stating a thing (`horizon.steps`) clears its alternatives (`horizon.tokens`). Raises InputError, with the nearest
    name that exists, for unknown groups, options and keys.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir} is not a folder")
    extra = [] if config_dir is None else [f"hydra.searchpath=['file://{config_dir.resolve()}']"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(packaged_configs()), version_base="1.3"):
        try:
            composed = OmegaConf.to_container(
                hydra_compose(name, [*overrides, *extra]), resolve=True, throw_on_missing=True
            )
        except HydraException as error:
            options = _flat_keys(hydra_compose(name, [*_groups(overrides), *extra])) if _is_key(error) else []
            raise InputError(_explain(error, options)) from error
        except (OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: a group set to null
            raise InputError(f"configuration: {_first_line(error)}") from error
    assert isinstance(composed, dict)
    return settle({str(key): value for key, value in composed.items()}, overrides)


def settle(config: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Let overrides mean what they say in a composed `config`, which is changed and returned.

    What an override replaces becomes null (with `horizon.steps=100` the horizon in tokens no longer counts), in the
    configuration and in what blocks of the grid `set`. Axes of a block stay: raises InputError where an override has
    no effect because every block has it, or an alternative to it, as an axis.
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for key in cleared(keys):
        parent: Any = config
        *path, last = key.split(".")
        for part in path:
            parent = parent.get(part) or {}
        if last in parent:
            parent[last] = None
    blocks = grid_blocks(config)
    for key in RUN_KEYS.intersection(keys):
        replaced = {key, *cleared([key])}
        for name, block in blocks.items():
            if block.set:
                kept = {k: v for k, v in flatten(block.set).items() if k not in replaced}
                blocks[name] = dataclasses.replace(block, set=kept)
                config["grid"]["blocks"][name]["set"] = kept
        if blocks and all(replaced & _axes(block) for block in blocks.values()):
            names = ", ".join(blocks)
            raise InputError(
                f"{key} has no effect: it is an axis of the grid ({names}); change grid, or add grid=single"
            )
    return config


def _axes(block: Block) -> set[str]:
    return {key for part in (block.product, block.zip, *block.cells) for key in flatten(part)}


def _explain(error: Exception, known: list[str]) -> str:
    """One line with a suggestion from Hydra's message of several lines."""
    from hydra.errors import OverrideParseException

    text = str(error)
    if option := re.search(r"Could not find '([^']+)'", text):
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        group, _, choice = option[1].rpartition("/")
        hint = suggest(choice, listed[1].split()) if listed else ""
        return f"configuration: no option {choice!r} in group {group!r}{hint}"
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"configuration: unknown key {key[1]}{suggest(key[1], known)}"
    if isinstance(error, OverrideParseException):
        return (
            f"configuration: cannot read the override {error.override}; it reads key=value, and a value with spaces or "
            "symbols goes in quotes that the shell leaves alone: 'key=\"params < 1e6\"'"
        )
    return f"configuration: {_first_line(error)}"


def _is_key(error: Exception) -> bool:
    return "Could not override" in str(error) and "No match in the defaults list" not in str(error)


def _groups(overrides: list[str]) -> list[str]:
    """The overrides that choose options of groups, for composing what keys there are."""
    groups = {path.name for path in packaged_configs().iterdir() if path.is_dir()}
    return [override for override in overrides if override.partition("=")[0].lstrip("+") in groups]


def _flat_keys(config: Any) -> list[str]:
    from omegaconf import OmegaConf

    return list(flatten(OmegaConf.to_container(config, resolve=False)))  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""What a configuration may hold: the typed form of the composed YAML, before shapes, horizons and rates are resolved.

Where something can be said in several ways (a horizon in steps or tokens), the unused ways are null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from sweep.launcher import LocalLauncher, SlurmLauncher
from sweep.schema import InputError
from sweep.spec import DataSpec, Execution, Source, build, suggest

# Alternatives: naming a key of one (in a grid or as an override) sets the keys of the others to null.
ALTERNATIVES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("horizon.steps",),
        ("horizon.tokens",),
        ("horizon.tokens_per_param",),
        ("horizon.flops",),
        ("horizon.tokens_at_small_batch", "horizon.batch_guess"),
    ),
    (("model.shape",), ("model.n_layer", "model.d_model"), ("model.params", "model.aspect")),
    (("model.n_head",), ("model.d_head",)),
    (("schedule.warmup_steps",), ("schedule.warmup_tokens",), ("schedule.warmup_fraction",)),
    (("optimizer.beta2",), ("optimizer.beta2_half_life_tokens",)),
)


@dataclass(frozen=True)
class ModelConfig:
    """Group `model`; resolved by `ladder.resolve_model`."""

    family: Literal["gpt2", "llama"]
    n_ctx: int
    shape: str | None = None
    n_layer: int | None = None
    d_model: int | None = None
    params: float | None = None
    aspect: float | None = None
    n_head: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class HorizonConfig:
    """How long a run trains."""

    steps: int | None = None
    tokens: float | None = None
    tokens_per_param: float | None = None
    flops: float | None = None
    tokens_at_small_batch: float | None = None
    batch_guess: float | None = None


@dataclass(frozen=True)
class LrRule:
    """Learning rate by rule, see `rules`."""

    name: Literal["reference", "kaplan"]
    lr: float
    d_model: int
    batch_tokens: int
    width_power: float
    batch_power: float


@dataclass(frozen=True)
class OptimizerConfig:
    """Group `optimizer`."""

    name: Literal["adamw", "adafactor"]
    lr: float | None
    lr_factor: float
    lr_rule: LrRule
    beta1: float
    beta2: float | None
    beta2_half_life_tokens: float | None
    eps: float
    weight_decay: float
    grad_clip: float


@dataclass(frozen=True)
class ScheduleConfig:
    """Group `schedule`."""

    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"]
    warmup_steps: int | None
    warmup_tokens: float | None
    warmup_fraction: float | None
    steps: int | None
    decay_fraction: float
    decay_shape: Literal["linear", "sqrt"]
    final: float


@dataclass(frozen=True)
class ScalarConfig:
    """Keys of a run outside the groups."""

    batch_tokens: int
    precision: Literal["fp32", "tf32", "bf16"]
    seed: int
    weight_average: float

    def __post_init__(self) -> None:
        if self.batch_tokens <= 0:
            raise InputError(f"batch_tokens must be positive, not {self.batch_tokens}")


@dataclass(frozen=True)
class TrackingConfig:
    """Group `tracking`."""

    name: Literal["none", "wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]


@dataclass(frozen=True)
class Block:
    """One block of a grid, see `grid`."""

    product: dict[str, Any] = field(default_factory=dict)
    zip: dict[str, Any] = field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()
    set: dict[str, Any] = field(default_factory=dict)
    where: str | None = None
    priority: int = 0  # its runs start before those of higher numbers


@dataclass(frozen=True)
class Config:
    """A whole configuration, of a sweep or (without grid) of one run. Fields that make a run are kept as plain data in
    `run`, flat with dotted keys, because a grid changes them one by one."""

    run: dict[str, Any]
    blocks: dict[str, Block]
    data: DataSpec
    source: Source
    execution: Execution
    launcher: LocalLauncher | SlurmLauncher
    tracking: TrackingConfig


_SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "horizon": HorizonConfig,
    "optimizer": OptimizerConfig,
    "optimizer.lr_rule": LrRule,
    "schedule": ScheduleConfig,
}
_SCALARS = tuple(f.name for f in dataclasses.fields(ScalarConfig))
_OTHERS = ("name", "data", "execution", "launcher", "tracking", "sweep_dir", "grid")
RUN_KEYS = frozenset(
    [*_SCALARS]
    + [
        f"{section}.{f.name}"
        for section, cls in _SECTIONS.items()
        for f in dataclasses.fields(cls)
        if (section, f.name) != ("optimizer", "lr_rule")
    ]
)


def read_config(config: Mapping[str, Any]) -> Config:
    """The typed form of a composed configuration. Raises InputError for unknown or missing keys and wrong types."""
    known = {*_SECTIONS, *_SCALARS, *_OTHERS} - {"optimizer.lr_rule"}
    for key in config:
        if key not in known:
            raise InputError(f"unknown key {key}{suggest(key, known)}")
    for key in sorted(known - {"grid"}):
        if key not in config:
            raise InputError(f"missing key {key}")
    for key in ("name", "sweep_dir"):
        if not isinstance(config[key], str):
            raise InputError(f"{key} must be str, not {config[key]!r}")
    run = {key: config[key] for key in _SCALARS}
    for name in ("model", "horizon", "optimizer", "schedule"):
        section(name, config[name])  # checked as a whole before it is taken apart
        run |= flatten(config[name], f"{name}.")
    data_fields = {f.name for f in dataclasses.fields(DataSpec)}
    source_fields = {f.name for f in dataclasses.fields(Source)}
    data = _mapping("data", config["data"])
    for key in data:
        if key not in data_fields | source_fields:
            raise InputError(f"unknown key data.{key}{suggest(key, data_fields | source_fields)}")
    return Config(
        run=run,
        blocks=grid_blocks(config) or {"run": Block()},
        data=build(DataSpec, {k: v for k, v in data.items() if k in data_fields}, "data"),
        source=build(Source, {k: v for k, v in data.items() if k in source_fields}, "data"),
        execution=build(Execution, config["execution"], "execution"),
        launcher=launcher_config(config["launcher"]),
        tracking=build(TrackingConfig, config["tracking"], "tracking"),
    )


def grid_blocks(config: Mapping[str, Any]) -> dict[str, Block]:
    """The typed blocks of a composed configuration's grid, if any. Raises InputError where they are no blocks."""
    grid = _mapping("grid", config.get("grid") or {})
    for key in grid:
        if key != "blocks":
            raise InputError(f"unknown key grid.{key}; a grid holds only blocks")
    blocks = _mapping("grid.blocks", grid.get("blocks") or {})
    return {name: build(Block, block or {}, f"grid.blocks.{name}") for name, block in blocks.items()}


def launcher_config(values: Any) -> LocalLauncher | SlurmLauncher:
    """The typed group `launcher`, by its name. Raises InputError for a name that is neither."""
    name = _mapping("launcher", values).get("name")
    kinds: dict[Any, type[LocalLauncher | SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}
    if name not in kinds:
        raise InputError(f"launcher.name must be one of {', '.join(kinds)}, not {name!r}")
    switch = {"stack": "on" if values["stack"] else "off"} if isinstance(values.get("stack"), bool) else {}
    return build(kinds[name], {**values, **switch}, "launcher")  # YAML reads a bare on and off as booleans


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{key} must be a mapping, not {value!r}")
    return value


def section(name: str, values: Mapping[str, Any]) -> Any:
    """The typed section `name` (model, horizon, optimizer, schedule; "" for the keys outside them) from plain,
    possibly flat, data."""
    nested: dict[str, Any] = {}
    for key, value in _mapping(name, values).items():
        head, _, tail = key.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[key] = value
    return build(_SECTIONS[name] if name else ScalarConfig, nested, name)


@lru_cache(maxsize=65536)
def _cached_section(name: str, items: tuple[tuple[str, Any], ...]) -> Any:
    return section(name, dict(items))


def run_section(name: str, run: Mapping[str, Any]) -> Any:
    """The typed section `name` of the flat `run`; equal sections of many runs are built once."""
    if name:
        start = f"{name}."
        items = tuple((key[len(start) :], value) for key, value in run.items() if key.startswith(start))
    else:
        items = tuple((key, run[key]) for key in _SCALARS)
    try:
        return _cached_section(name, items)
    except TypeError:  # an unhashable value, which the builder names
        return section(name, dict(items))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def cleared(keys: Iterable[str]) -> dict[str, None]:
    """Keys that become null because `keys` name another of their alternatives."""
    named = set(keys)
    out: dict[str, None] = {}
    for group in ALTERNATIVES:
        if any(named.intersection(way) for way in group):
            out |= dict.fromkeys(key for way in group if not named.intersection(way) for key in way)
    return out

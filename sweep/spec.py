"""What one training run is: the scientific fields (`RunSpec`), their hash (`run_id`), and how it is executed.

`RunSpec` holds everything that changes the science and nothing else. `Execution` and `Source` say how and from where;
they may differ between machines without making it another run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from sweep.schema import InputError

LISTED = 20  # names that a message may list
_CREDENTIALS = re.compile(r"://[^/\s]*@")  # of an address


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a decoder-only transformer."""

    family: Literal["gpt2", "llama"]
    n_layer: int
    d_model: int
    n_head: int
    d_head: int
    d_ff: int
    n_ctx: int
    vocab_size: int

    def __post_init__(self) -> None:
        _positive(self, "n_layer", "d_model", "n_head", "d_head", "d_ff", "n_ctx", "vocab_size")
        if self.family == "gpt2" and self.n_head * self.d_head != self.d_model:
            raise InputError(
                f"model: d_model {self.d_model} is not n_head {self.n_head} x d_head {self.d_head}; gpt2 needs "
                "d_model divisible by n_head (set model.n_head, or use model/family llama with its own d_head)"
            )
        if self.family == "llama" and self.d_head % 2:
            raise InputError(f"model: rotary positions need an even d_head, not {self.d_head}; change model.n_head")


@dataclass(frozen=True)
class DataSpec:
    """Which text, how it becomes tokens, and how much of it is the test set."""

    source: Literal["python", "text", "hub"]
    name: str  # what the text is: "stdlib", "wikitext-103", the user's label
    tokenizer: Literal["bytes", "bpe"]
    vocab_size: int
    test_fraction: float  # of the documents, by hash
    test_tokens: int  # evaluated at each evaluation, the same ones for every run
    max_train_tokens: int | None = None  # token budget of the training split; None: all there is

    def __post_init__(self) -> None:
        _positive(self, "vocab_size", "test_tokens")
        if not 0 < self.test_fraction < 1:
            raise InputError(f"data.test_fraction must lie between 0 and 1, not {self.test_fraction}")
        if self.tokenizer == "bytes" and self.vocab_size != 256:
            raise InputError(f"data.vocab_size is 256 for data.tokenizer=bytes, not {self.vocab_size}")


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW, or Adafactor for the largest models of Kaplan et al. 2020. Decay applies to matrices only."""

    name: Literal["adamw", "adafactor"]
    lr: float  # peak
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float  # global norm; 0: none

    def __post_init__(self) -> None:
        _positive(self, "lr", "eps")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer.{name} must lie in [0, 1), not {getattr(self, name)}")
        for name in ("weight_decay", "grad_clip"):
            if getattr(self, name) < 0:
                raise InputError(f"optimizer.{name} must not be negative, but is {getattr(self, name)}")


@dataclass(frozen=True)
class ScheduleSpec:
    """Learning rate as a function of the step, resolved to steps."""

    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"]
    warmup_steps: int
    schedule_steps: int  # where the decay ends; beyond `steps` when a run is read mid-schedule
    decay_steps: int = 0  # of wsd
    decay_shape: Literal["linear", "sqrt"] = "linear"  # of wsd; sqrt is 1 - sqrt(x)
    final: float = 0.0  # learning rate at the end of the decay as a share of the peak

    def __post_init__(self) -> None:
        _positive(self, "schedule_steps")
        if self.warmup_steps < 0 or self.decay_steps < 0 or not 0 <= self.final <= 1:
            raise InputError("schedule: warm-up and decay must not be negative and final must lie in [0, 1]")
        if self.warmup_steps + self.decay_steps > self.schedule_steps:
            raise InputError(
                f"schedule: warm-up {self.warmup_steps} + decay {self.decay_steps} steps exceed the schedule's "
                f"{self.schedule_steps}; shorten schedule.warmup_* or lengthen the horizon"
            )


@dataclass(frozen=True)
class RunSpec:
    """The scientific configuration of one run. Two runs with equal fields are the same run."""

    model: ModelSpec
    data: DataSpec
    batch_tokens: int
    steps: int
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    seed: int = 0  # initial weights and data order
    weight_average: float = 0.0  # evaluate the average over about this share of the steps so far; 0: the last weights

    def __post_init__(self) -> None:
        _positive(self, "batch_tokens", "steps")
        if self.batch_tokens % self.model.n_ctx:
            below = self.batch_sequences * self.model.n_ctx
            above = below + self.model.n_ctx
            raise InputError(
                f"batch_tokens {self.batch_tokens} is not a multiple of model.n_ctx {self.model.n_ctx}; "
                + (f"the nearest are {below} and {above}" if below else f"the nearest is {above}")
            )
        if self.model.vocab_size != self.data.vocab_size:
            raise InputError(f"model.vocab_size {self.model.vocab_size} differs from data's {self.data.vocab_size}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, but is {self.seed}")
        if not 0 <= self.weight_average < 1:
            raise InputError(f"weight_average must lie in [0, 1), not {self.weight_average}")

    @property
    def batch_sequences(self) -> int:
        """Sequences a batch."""
        return self.batch_tokens // self.model.n_ctx

    @property
    def tokens(self) -> int:
        """D: tokens processed by the end of the run."""
        return self.batch_tokens * self.steps

    @functools.cached_property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits of the hash of all fields."""
        text = json.dumps(plain(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Source:
    """Where the text lies on this machine and how often it may be read. Not part of the science: the token file's
    hash, frozen with the plan, guards it."""

    files: tuple[str, ...] = ()  # paths or globs of data.source=text, or local files read through `datasets`
    test_files: tuple[str, ...] = ()  # instead of the split by hash
    hub_path: str | None = None  # first argument of datasets.load_dataset
    hub_config: str | None = None
    hub_revision: str | None = None  # branch, tag or commit of the dataset
    hub_split: str = "train"
    hub_field: str = "text"  # the column that holds the document
    hub_rows: Literal["documents", "lines"] = "documents"  # lines are joined to documents of 64 KiB
    site_packages: bool = False  # data.source=python: the installed packages too
    cache_dir: str | None = None  # of token files; None: the user's cache
    max_epochs: float = 1.0

    def __post_init__(self) -> None:
        for name in ("files", "test_files", "hub_path", "cache_dir"):
            value = getattr(self, name)
            for place in (value,) if isinstance(value, str) else value or ():
                if _CREDENTIALS.search(place):
                    raise InputError(
                        f"data.{name}: an address with a user name or password would be written into the plan and "
                        "every manifest; give it without (a token of the Hub goes into HF_TOKEN)"
                    )


@dataclass(frozen=True)
class Execution:
    """How a run is computed and watched. `micro_batch` and `threads` fix the order of additions on a CPU, so they are
    frozen with the plan for a bit-identical resume."""

    micro_batch: int | None = None  # sequences on a device; None: as many as fit (CUDA only)
    threads: int = 1
    shard_above: float = 1e9  # parameters of a model that several devices hold together, a part each
    compile: bool = False
    deterministic: bool = False
    eval_points_per_decade: int = 8  # of tokens, on a grid shared by all batch sizes
    eval_tail: int = 4  # further evaluations in the last tenth
    checkpoint_seconds: float = 60.0
    save_model: bool = False  # in Hugging Face format when done

    def __post_init__(self) -> None:
        least = dict.fromkeys(("micro_batch", "threads", "eval_points_per_decade"), 1)
        least |= dict.fromkeys(("shard_above", "eval_tail", "checkpoint_seconds"), 0)
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"execution.{name} must be at least {bound}, not {value}")


@dataclass(frozen=True)
class PlannedRun:
    """One line of plan.jsonl."""

    spec: RunSpec
    source: Source
    execution: Execution
    costs: dict[str, float] = field(default_factory=dict)  # params, tokens, flops, seconds (estimate)
    data_hash: str | None = None  # frozen when the sweep starts
    stack: int | None = None  # number, in the plan, of the runs that are trained as one; None: alone
    priority: int = 0  # runs of lower numbers start first

    @property
    def run_id(self) -> str:
        """The spec's."""
        return self.spec.run_id

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the run_id first."""
        return {"run_id": self.run_id, **plain(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises InputError where the stored run_id is not the spec's (an edited plan)."""
        run_id = data.get("run_id")
        planned = build(cls, {key: value for key, value in data.items() if key != "run_id"})
        if run_id is not None and run_id != planned.run_id:
            raise InputError(f"plan: line {run_id} was edited (its fields hash to {planned.run_id}); plan it anew")
        return planned


T = typing.TypeVar("T")
Convert = Callable[[Any, str], Any]  # of a plain value, and of where it stands for the message


def plain(record: Any) -> dict[str, Any]:
    """A dataclass, with the dataclasses in its fields, as plain data: `dataclasses.asdict` without copies of values."""
    return {
        name: plain(value) if dataclasses.is_dataclass(value := getattr(record, name)) else value
        for name in _layout(type(record))  # type: ignore[arg-type]
    }


def build(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from plain data, strictly: unknown and missing keys, and values of the wrong type, raise
    InputError. Numbers are normalised to the field's type, so that 8 and 8.0 give one hash."""
    if not isinstance(data, dict):
        raise InputError(f"{where or cls.__name__} must be a mapping, not {data!r}")
    fields = _layout(cls)  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise InputError(f"unknown key {_join(where, key)}{suggest(key, fields)}")
    values = {}
    for name, (convert, required) in fields.items():
        if name in data:
            values[name] = convert(data[name], _join(where, name))
        elif required:
            raise InputError(f"missing key {_join(where, name)}")
    return cls(**values)


@functools.cache
def _layout(cls: type) -> dict[str, tuple[Convert, bool]]:
    """Of each field of a dataclass: how a plain value becomes one of its type, and whether it has to be given."""
    hints = typing.get_type_hints(cls)
    nothing = dataclasses.MISSING
    return {
        f.name: (_converter(hints[f.name]), f.default is nothing and f.default_factory is nothing)
        for f in dataclasses.fields(cls)
    }


def _converter(hint: Any) -> Convert:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union([_converter(a) for a in args if a is not type(None)], type(None) in args)
    if dataclasses.is_dataclass(hint):
        return lambda value, where: value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        item = _converter(args[0])
        return lambda value, where: _tuple(item, value, where)
    if origin is Literal:
        return lambda value, where: _literal(args, value, where)
    return lambda value, where: _scalar(origin or hint, value, where)


def _union(choices: list[Convert], optional: bool) -> Convert:
    *first, last = choices

    def convert(value: Any, where: str) -> Any:
        if value is None and optional:
            return None
        for choice in first:
            with contextlib.suppress(InputError):
                return choice(value, where)
        return last(value, where)

    return convert


def _tuple(item: Convert, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, str | list | tuple):
        raise InputError(f"{where} must be tuple, not {value!r}")
    return tuple(item(v, where) for v in ([value] if isinstance(value, str) else value))


def _literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise InputError(f"{where} must be one of {', '.join(map(str, choices))}, not {value!r}")
    return value


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is dict and isinstance(value, dict):
        return dict(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        if kind in (bool, str) and isinstance(value, kind):
            return value
    elif abs(value) <= sys.float_info.max:  # neither NaN nor an integer that no float reaches
        if kind is float:
            return float(value)
        if kind is int and int(value) == value:
            return int(value)
    raise InputError(f"{where} must be {kind.__name__}, not {value!r}")


def _positive(obj: Any, *names: str) -> None:
    for name in names:
        if not getattr(obj, name) > 0:
            raise InputError(f"{type(obj).__name__}: {name} must be positive, not {getattr(obj, name)}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def suggest(key: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for a mistyped key, or what keys there are where none is near and they fit on a line."""
    import difflib

    names = sorted(known)
    if close := difflib.get_close_matches(key, names, 1):
        return f"; did you mean {close[0]}?"
    return f"; known are {', '.join(names)}" if len(names) <= LISTED else "; isoloss plan --cfg job shows all keys"

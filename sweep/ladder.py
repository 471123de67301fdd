"""Shapes: from what a configuration says (a rung such as "2x32", layers and width, or a target N) to a `ModelSpec`."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from sweep.config import ModelConfig
from sweep.schema import InputError
from sweep.spec import ModelSpec

RUNG = re.compile(r"(\d+)x(\d+)")
SWIGLU_MULTIPLE = 8  # d_ff of a SwiGLU block; odd widths are slow on tensor cores


@lru_cache(maxsize=4096)
def resolve_model(config: ModelConfig, data_vocab: int) -> ModelSpec:
    """The shape that `config` asks for; `data_vocab` is the vocabulary where the model does not state one.

    Raises InputError where the shape is not given in exactly one way or cannot be built.
    """
    given = [name for name, values in _ways(config).items() if any(v is not None for v in values)]
    if len(given) != 1:
        ways = "model.shape, model.n_layer + model.d_model, or model.params + model.aspect"
        said = f"{' and '.join(given)} are set" if given else "none is set"
        raise InputError(f"model: give the shape in exactly one way ({ways}); {said}; set the others to null")
    if config.shape is not None:
        n_layer, d_model = parse_rung(config.shape)
    elif config.params is not None:
        n_layer, d_model = nearest_rung(config.params, config.aspect, _head_multiple(config))
    else:
        if config.n_layer is None or config.d_model is None:
            raise InputError("model: model.n_layer and model.d_model are needed together")
        n_layer, d_model = config.n_layer, config.d_model
    n_head, d_head = _heads(config, d_model)
    vocab = data_vocab if config.vocab_size is None else config.vocab_size
    d_ff = default_d_ff(config.family, d_model) if config.d_ff is None else config.d_ff
    return ModelSpec(config.family, n_layer, d_model, n_head, d_head, d_ff, config.n_ctx, vocab)


def parse_rung(shape: str) -> tuple[int, int]:
    """Layers and width of a rung: "2x32" is two layers of width 32."""
    match = RUNG.fullmatch(shape)
    if match is None:
        raise InputError(f'model.shape must read like "2x32" (n_layer x d_model), not {shape!r}')
    return int(match[1]), int(match[2])


def nearest_rung(params: float, aspect: float | None, multiple: int) -> tuple[int, int]:
    """Layers and width with 12 n_layer d_model^2 nearest to `params` (in ratio) near d_model = aspect * n_layer.

    `multiple` is the width's granularity (the size of a head). N wins over the aspect ratio: among the widths
    around the ideal one, each with its best number of layers, the nearest N is taken, then the nearest aspect.
    """
    if aspect is None or aspect <= 0 or params <= 0:
        raise InputError("model: model.params needs a positive value and a positive model.aspect (d_model / n_layer)")
    ideal = (params * aspect / 12) ** (1 / 3)
    centre = max(1, round(ideal / multiple))
    best: tuple[float, float, int, int] | None = None
    for k in range(max(1, round(centre * 0.7)), math.ceil(centre * 1.4) + 1):
        d_model = k * multiple
        n_layer = max(1, round(params / (12 * d_model**2)))
        off = abs(math.log(12 * n_layer * d_model**2 / params))
        shape = abs(math.log(d_model / n_layer / aspect))
        # errors of N within two per cent count as equal, so that the aspect ratio decides among them
        best = min(best or (math.inf,) * 2 + (0, 0), (max(off, 0.02), shape, n_layer, d_model))
    assert best is not None
    return best[2], best[3]


def default_d_ff(family: str, d_model: int) -> int:
    """Feed-forward width: 4 d_model for gpt2; for SwiGLU 8/3 d_model (to a multiple of 8), so that its three
    matrices hold as much as the two of gpt2."""
    if family == "gpt2":
        return 4 * d_model
    return max(1, round(8 * d_model / 3 / SWIGLU_MULTIPLE)) * SWIGLU_MULTIPLE


def describe(model: ModelSpec) -> str:
    """A rung's name for tables, for example "2x32"."""
    return f"{model.n_layer}x{model.d_model}"


def micro_batch(model: ModelSpec, sequences: int, token_target: int = 2048, memory: float = 2**30) -> int:
    """Sequences of one forward pass on a CPU: the largest divisor of the batch within the token target and the memory.

    From the plan alone and never from free memory, so that a resumed run repeats the same additions. `memory` bounds
    the activations and logits of one pass, in bytes.
    """
    limit = min(token_target // model.n_ctx, int(memory / model.n_ctx / activation_bytes(model)))
    return largest_divisor(sequences, limit)


def activation_bytes(model: ModelSpec, attention: bool = True) -> float:
    """Bytes that a pass keeps for each token: activations of all layers, the matrices of `attention` over the context
    (which flash attention does not keep), logits."""
    width = 16 * model.d_model + 3 * model.d_ff + attention * 3 * model.n_head * model.n_ctx  # floats a layer
    return 4.0 * (model.n_layer * width + 4 * model.vocab_size)


@lru_cache(maxsize=65536)
def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`; 1 where that is below 1."""
    return next((m for m in range(min(limit, number), 1, -1) if number % m == 0), 1)


def _ways(config: ModelConfig) -> dict[str, tuple[object, ...]]:
    return {
        "model.shape": (config.shape,),
        "model.n_layer/d_model": (config.n_layer, config.d_model),
        "model.params": (config.params,),
    }


def _head_multiple(config: ModelConfig) -> int:
    return config.d_head or config.n_head or 1


def _heads(config: ModelConfig, d_model: int) -> tuple[int, int]:
    """Number and size of the heads; what is not given follows from d_model."""
    n_head, d_head = config.n_head, config.d_head
    for name, value in (("n_head", n_head), ("d_head", d_head)):
        if value is not None and value <= 0:
            raise InputError(f"model.{name} must be positive, not {value}")
    if n_head is not None and d_head is not None:
        return n_head, d_head
    if n_head is None and d_head is None:
        raise InputError("model: set model.n_head or model.d_head")
    given, value = ("n_head", n_head) if n_head is not None else ("d_head", d_head)
    assert value is not None
    if d_model % value:
        near = [m for m in (d_model // value * value, -(-d_model // value) * value) if m]
        raise InputError(
            f"model.d_model {d_model} is not divisible by model.{given} {value}; "
            f"the nearest widths are {' and '.join(map(str, near))}"
        )
    return (value, d_model // value) if given == "n_head" else (d_model // value, value)

"""The two model families: names, shapes and initial values of their parameters, and the Hugging Face format.

Names and shapes are those of transformers, which is imported for the Hugging Face format only: training runs on
`sweep.forward`, and importing transformers takes longer than many a run's first hundred steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sweep.schema import InputError
from sweep.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import GPT2Config, LlamaConfig, PreTrainedModel

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0


Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(spec: ModelSpec) -> Shapes:
    """Name and shape of every parameter, in the order of the transformers model's `named_parameters`.

    GPT-2's matrices are [in, out], Llama's [out, in]. GPT-2's head is tied to the embedding, no parameter of its own.
    """
    d, vocab = spec.d_model, spec.vocab_size
    if spec.family == "gpt2":
        return {
            "transformer.wte.weight": (vocab, d),
            "transformer.wpe.weight": (spec.n_ctx, d),
            **_numbered("transformer.h", spec.n_layer, _gpt2_layer(spec)),
            "transformer.ln_f.weight": (d,),
            "transformer.ln_f.bias": (d,),
        }
    return {
        "model.embed_tokens.weight": (vocab, d),
        **_numbered("model.layers", spec.n_layer, _llama_layer(spec)),
        "model.norm.weight": (d,),
        "lm_head.weight": (vocab, d),
    }


def _numbered(prefix: str, n_layer: int, layer: Shapes) -> Shapes:
    return {f"{prefix}.{i}.{name}": shape for i in range(n_layer) for name, shape in layer.items()}


def _gpt2_layer(spec: ModelSpec) -> Shapes:
    d, d_ff = spec.d_model, spec.d_ff
    return {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, d_ff),
        "mlp.c_fc.bias": (d_ff,),
        "mlp.c_proj.weight": (d_ff, d),
        "mlp.c_proj.bias": (d,),
    }


def _llama_layer(spec: ModelSpec) -> Shapes:
    d, d_attn, d_ff = spec.d_model, spec.n_head * spec.d_head, spec.d_ff
    return {
        "self_attn.q_proj.weight": (d_attn, d),
        "self_attn.k_proj.weight": (d_attn, d),
        "self_attn.v_proj.weight": (d_attn, d),
        "self_attn.o_proj.weight": (d, d_attn),
        "mlp.gate_proj.weight": (d_ff, d),
        "mlp.up_proj.weight": (d_ff, d),
        "mlp.down_proj.weight": (d, d_ff),
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }


def initial_parameters(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """The parameters of a fresh model, float32 on the CPU, by `parameter_shapes` and `init_std`."""
    return dict(draw_parameters(spec, seed))


def draw_parameters(spec: ModelSpec, seed: int) -> Iterator[tuple[str, Tensor]]:
    """`initial_parameters` one at a time, for a model that is too large for one machine."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in parameter_shapes(spec).items():
        parameter = torch.empty(shape)
        _fill(name, parameter, spec, generator)
        yield name, parameter


def component_params(parameters: dict[str, Tensor]) -> dict[str, int]:
    """Sizes of named parameters summed by the components of `accounting.Params`."""
    counts = dict.fromkeys(("embedding", "position", "attention", "mlp", "norm_bias", "head"), 0)
    for name, parameter in parameters.items():
        counts[component_of(name, parameter.ndim)] += parameter.numel()
    return counts


def component_of(name: str, ndim: int) -> str:
    """The component of `accounting.Params` that the parameter called `name` with `ndim` dimensions belongs to."""
    if ndim == 1:
        return "norm_bias"
    for part, component in (("wte", "embedding"), ("embed_tokens", "embedding"), ("wpe", "position")):
        if part in name:
            return component
    if "lm_head" in name:
        return "head"
    return "attention" if "attn" in name else "mlp"


def initialize(parameters: dict[str, Tensor], spec: ModelSpec, seed: int) -> None:
    """Fill `parameters` in place from one CPU generator, in their order, by `init_std`; norms with 1, biases with 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        _fill(name, parameter, spec, generator)


@torch.no_grad()
def _fill(name: str, parameter: Tensor, spec: ModelSpec, generator: torch.Generator) -> None:
    if parameter.ndim == 1:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    else:
        parameter.normal_(0.0, init_std(name, parameter.shape, spec), generator=generator)


def init_std(name: str, shape: torch.Size, spec: ModelSpec) -> float:
    """Standard deviation of a matrix's initial values: 1/sqrt(fan in), so that activations keep their scale at every
    width; 1/sqrt(d_model) for embedding and head, so that logits start at scale one; 0.02 for positions; and
    1/sqrt(2 n_layer) of that for the two matrices that write to the residual stream (Radford et al. 2019, section 2.3).

    GPT-2's constant 0.02 is 1/sqrt(2500), right for its largest widths and far too small for those of a ladder: on
    Python source a 2x32 model ended 2 M tokens at 1.93 with it and 1.85 so, a 4x64 model 1 M tokens at 2.08 and 1.88.
    """
    component = component_of(name, len(shape))
    if component == "position":
        return 0.02
    if component in ("embedding", "head"):
        return spec.d_model**-0.5
    fan_in = shape[0] if spec.family == "gpt2" else shape[1]  # transformers keeps GPT-2's matrices as [in, out]
    writes = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
    return float(fan_in) ** -0.5 / (math.sqrt(2 * spec.n_layer) if writes else 1.0)


def transformers_config(spec: ModelSpec) -> GPT2Config | LlamaConfig:
    """The transformers config of `spec`. GELU is the tanh form that GPT-2 uses, as one kernel."""
    from transformers import GPT2Config, LlamaConfig

    if spec.family == "gpt2":
        return GPT2Config(
            vocab_size=spec.vocab_size,
            n_positions=spec.n_ctx,
            n_embd=spec.d_model,
            n_layer=spec.n_layer,
            n_head=spec.n_head,
            n_inner=spec.d_ff,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=NORM_EPS,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=spec.d_ff,
        num_hidden_layers=spec.n_layer,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=spec.d_head,
        max_position_embeddings=spec.n_ctx,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    # The constructor wants d_model to be a multiple of n_head, which the model itself does not need and some shapes of
    # Hoffmann et al. 2022, Table A9, are not (d_model 2688 with 22 heads of 128).
    config.num_attention_heads = config.num_key_value_heads = spec.n_head
    return config


def transformers_model(spec: ModelSpec, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """The model of transformers that holds copies of `weights` (by `parameter_shapes`): on the CPU in float32, no
    dropout, no cache, SDPA attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(transformers_config(spec), attn_implementation="sdpa", dtype=torch.float32)
    missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    assert not unexpected, unexpected
    assert missing == (["lm_head.weight"] if spec.family == "gpt2" else []), missing  # tied, or its own
    return model


def save_model(spec: ModelSpec, weights: Mapping[str, Tensor], path: Path) -> None:
    """Write `weights` (by `parameter_shapes`) in Hugging Face format to the folder `path`. Raises InputError for a
    shape that transformers would refuse to load."""
    if spec.d_model % spec.n_head:
        raise InputError(
            f"a model with d_model {spec.d_model} and {spec.n_head} heads cannot be saved: transformers loads only "
            "shapes whose d_model is a multiple of n_head; set execution.save_model to false"
        )
    from transformers.utils import logging as transformers_logging

    model = transformers_model(spec, weights)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(path)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()

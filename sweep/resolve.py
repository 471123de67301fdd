"""Horizons, optimisers and schedules: from what a configuration says to the exact values of one run."""

from __future__ import annotations

import dataclasses

from sweep.accounting import count_params
from sweep.config import HorizonConfig, OptimizerConfig, ScheduleConfig
from sweep.rules import beta2_from_half_life, kaplan_lr, reference_lr, round_digits
from sweep.schema import InputError
from sweep.spec import ModelSpec, OptimizerSpec, ScheduleSpec

DEFAULT_TOKENS_PER_PARAM = 20.0  # where no horizon is given


def resolve_steps(horizon: HorizonConfig, params: int, batch_tokens: int) -> int:
    """Updates of a run: the whole number nearest to what `horizon` asks for, at least one.

    Without any horizon it is 20 tokens per parameter. Raises InputError where two are given.
    """
    given = {
        key: value
        for key, value in dataclasses.asdict(horizon).items()
        if value is not None and key not in ("batch_guess",)
    }
    if len(given) > 1:
        raise InputError(f"horizon: {' and '.join(given)} are both set; keep one and set the others to null")
    for key, value in given.items():
        if value <= 0:
            raise InputError(f"horizon.{key} must be positive, not {value}")
    if horizon.steps is not None:
        return horizon.steps
    if horizon.tokens is not None:
        tokens = horizon.tokens
    elif horizon.flops is not None:
        tokens = horizon.flops / (6 * params)
    elif horizon.tokens_at_small_batch is not None:
        if not horizon.batch_guess or horizon.batch_guess < 0:
            raise InputError("horizon.tokens_at_small_batch needs a positive horizon.batch_guess (tokens)")
        tokens = horizon.tokens_at_small_batch * (1 + batch_tokens / horizon.batch_guess)
    else:
        tokens = (horizon.tokens_per_param or DEFAULT_TOKENS_PER_PARAM) * params
    return max(1, round(tokens / batch_tokens))


def resolve_optimizer(config: OptimizerConfig, model: ModelSpec, batch_tokens: int) -> OptimizerSpec:
    """The optimiser with its learning rate and beta2, explicit or by rule, rounded to six significant digits."""
    rule = config.lr_rule
    if config.lr is not None:
        lr = config.lr
    elif rule.name == "kaplan":
        lr = kaplan_lr(count_params(model).params)
    else:
        lr = reference_lr(
            model.d_model,
            batch_tokens,
            lr=rule.lr,
            reference_d_model=rule.d_model,
            reference_batch_tokens=rule.batch_tokens,
            width_power=rule.width_power,
            batch_power=rule.batch_power,
        )
    if (config.beta2 is None) == (config.beta2_half_life_tokens is None):
        raise InputError("optimizer: set exactly one of optimizer.beta2 and optimizer.beta2_half_life_tokens")
    if config.beta2_half_life_tokens is not None:
        beta2 = beta2_from_half_life(batch_tokens, config.beta2_half_life_tokens)
    else:
        beta2 = float(config.beta2 or 0.0)
    return OptimizerSpec(
        name=config.name,
        lr=round_digits(lr * config.lr_factor),
        beta1=config.beta1,
        beta2=round_digits(beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
    )


def resolve_schedule(config: ScheduleConfig, steps: int, batch_tokens: int) -> ScheduleSpec:
    """The schedule in steps. Raises InputError unless the warm-up is given in exactly one way."""
    length = steps if config.steps is None else config.steps
    warmup = {
        "warmup_steps": config.warmup_steps,
        "warmup_tokens": None if config.warmup_tokens is None else round(config.warmup_tokens / batch_tokens),
        "warmup_fraction": None if config.warmup_fraction is None else round(config.warmup_fraction * length),
    }
    given = {key: value for key, value in warmup.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(given) + " are set" if given else "none is set"
        raise InputError(f"schedule: give the warm-up in exactly one of {', '.join(warmup)}; {said}")
    if length < steps:
        raise InputError(f"schedule.steps {length} ends before the run's {steps} steps; lengthen it or set it to null")
    return ScheduleSpec(
        name=config.name,
        warmup_steps=next(iter(given.values())),
        schedule_steps=length,
        decay_steps=round(config.decay_fraction * length) if config.name == "wsd" else 0,
        decay_shape=config.decay_shape,
        final=config.final,
    )

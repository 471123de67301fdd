"""Rules that set optimiser values from the size of the model and of the batch."""

from __future__ import annotations

import math

from sweep.schema import InputError


def kaplan_lr(params: int) -> float:
    """Peak learning rate 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, Eq. D.1).

    Raises InputError from N = 1.2e10 on, where the rule reaches zero.
    """
    lr = 0.003239 - 0.0001395 * math.log(params)
    if lr <= 0:
        raise InputError(f"optimizer.lr_rule kaplan gives no positive rate at N = {params:.3g}; set optimizer.lr")
    return lr


def reference_lr(
    d_model: int,
    batch_tokens: int,
    *,
    lr: float,
    reference_d_model: int,
    reference_batch_tokens: int,
    width_power: float,
    batch_power: float,
) -> float:
    """Peak learning rate scaled from a tuned one: lr (d_model / reference)^width_power (B / reference)^batch_power."""
    return lr * (d_model / reference_d_model) ** width_power * (batch_tokens / reference_batch_tokens) ** batch_power


def beta2_from_half_life(batch_tokens: int, half_life_tokens: float) -> float:
    """AdamW's beta2 whose memory of squared gradients halves every `half_life_tokens` at any batch size."""
    if half_life_tokens <= 0:
        raise InputError(f"optimizer.beta2_half_life_tokens must be positive, not {half_life_tokens}")
    return 0.5 ** (batch_tokens / half_life_tokens)


def round_digits(value: float, digits: int = 6) -> float:
    """`value` to significant digits: derived values must be equal on every machine, since they enter the run_id."""
    return float(f"{value:.{digits - 1}e}")

"""The laws from Python: a small synthetic table, three fits with intervals, and what they predict.

run: python scripts/example_fit.py
"""

from __future__ import annotations

import numpy as np

from analysis import isoflop, parametric, power_law
from analysis.outcome import Outcome
from analysis.predict import parse, predict


def table(noise: float = 0.003, seed: int = 1) -> dict[str, np.ndarray]:
    """Runs of nine sizes around the best one at each of six budgets, drawn from a known law with noise of ln(loss)."""
    flops = np.repeat(np.geomspace(1e18, 1e21, 6), 9)
    params = (flops / 120) ** 0.5 * np.tile(np.geomspace(1 / 4, 4, 9), 6)
    tokens = flops / (6 * params)
    loss = 1.8 + 480 / params**0.35 + 2100 / tokens**0.37
    loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    return {"params": params, "tokens": tokens, "loss": loss}


def show(law: Outcome) -> None:
    """Every estimate with its interval, and what a careful referee would say."""
    print(f"\n{law.law}: {law.points} points")
    for name, estimate in law.estimates.items():
        print(f"  {name:<14} {estimate.value:>10.4g}  [{estimate.low:.4g}, {estimate.high:.4g}]")
    for warning in law.warnings:
        print(f"  warning: {warning['message']}")


def main() -> None:
    """Approach 2, approach 3, and the loss of the best runs against compute."""
    runs = table()
    params, tokens, loss = runs["params"], runs["tokens"], runs["loss"]
    flops = 6 * params * tokens

    sizes = isoflop.fit(params, loss, flops, bootstrap=200)
    surface = parametric.fit(params, tokens, loss, bootstrap=200)
    optima = sizes.frames["optima"].query("used")
    best = power_law.fit(optima["flops"].to_numpy(), optima["loss"].to_numpy(), offset=True, bootstrap=200)
    for law in (sizes, surface, best):
        show(law)

    print("\nfor 1e23 FLOP")
    for law in (sizes, surface):
        for answer in predict(parse(law.to_json()), flops=1e23).answers:
            n, d = answer.values["params"], answer.values["tokens"]
            if n is not None and d is not None:
                print(f"  {answer.approach:<11} N {n.value:.3g} [{n.low:.3g}, {n.high:.3g}]  D {d.value:.3g}")


if __name__ == "__main__":
    main()

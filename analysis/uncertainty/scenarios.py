"""The synthetic data that intervals are judged on, and one judgement of them all.

kaplan      undecayed curves of six sizes, two of them at seven batches, with warm-up transients, seed noise and
            uneven tuning, through the whole chain
hoffmann    decayed runs of eight sizes at seven budgets, three seeds at the lowest, through the whole chain
tables      tables of points for each law that is fitted on its own (`isoloss fit`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from scipy.interpolate import RectBivariateSpline

from analysis import critical_batch, efficiency, frontier, isoflop, kaplan_loss, parametric, power_law, published
from analysis import kaplan as kaplan_law
from analysis.chain.derive import derive
from analysis.chain.results import DERIVED, exponent_name
from analysis.outcome import Estimate
from analysis.tables.table import Table
from analysis.uncertainty.bootstrap import correlated_noise
from analysis.uncertainty.calibration import Judged, World, judge, named_estimates, optimal
from analysis.uncertainty.simulate import Truth, decayed_sweep, synthetic_sweep

TUNING, SIGMA, WARMUP = 0.04, 0.004, 1e5
BATCH = 2048.0  # tokens, what the sizes of `kaplan` share
SHAPES = ((2, 8), (2, 12), (2, 16), (2, 24), (2, 32), (2, 48), (3, 56), (4, 64))
BUDGETS = tuple(1e10 * 2.5**i for i in range(7))
THETA = np.array([math.log(20.0), 0.35, math.log(400.0), 0.4, math.log(1.2)])


def kaplan(seed: int, replicates: int) -> list[Judged]:
    """One noisy sweep of Kaplan's law."""
    table = synthetic_sweep(tuning=TUNING, sigma=SIGMA, warmup=WARMUP, seed=seed)
    return judge(derive(table, replicates=replicates, seed=seed, extras=False), _kaplan_world())


def hoffmann(seed: int, replicates: int) -> list[Judged]:
    """One noisy sweep of Hoffmann's law."""
    table = _decayed(seed, SIGMA, 3)
    return judge(derive(table, replicates=replicates, seed=seed, extras=False), _hoffmann_world())


def tables(seed: int, replicates: int) -> list[Judged]:
    """One table of points for each law."""
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e5, 1e8, 8)
    y = 30 * x**-0.1 * np.exp(0.01 * rng.standard_normal(8))
    rows = _named(
        "power-law",
        {"coefficient": 30, "exponent": -0.1},
        power_law.fit(x, y, bootstrap=replicates, seed=seed).estimates,
    )
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e10, 8)))
    law = {"A": 400.0, "B": 1100.0, "E": 1.7, "alpha": 0.34, "beta": 0.33}
    loss = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]
    loss = loss * np.exp(0.004 * rng.standard_normal(n.size))
    rows += _named(
        "parametric", _with_policy(law), parametric.fit(n, d, loss, bootstrap=replicates, seed=seed).estimates
    )
    rows += _offset(rng, replicates, seed) + _surfaces(rng, replicates, seed)
    return rows + _isoflop(rng, replicates, seed) + _frontier(rng, replicates, seed) + _critical(rng, replicates, seed)


SCENARIOS: dict[str, Callable[[int, int], list[Judged]]] = {"kaplan": kaplan, "hoffmann": hoffmann, "tables": tables}


def grid_bias(scenario: str) -> dict[str, float]:
    """By quantity, what the scenario's few sizes change without noise."""
    if scenario == "kaplan":
        table, world = synthetic_sweep(sigma=1e-9, seeds={}, warmup=WARMUP), _kaplan_world()
    elif scenario == "hoffmann":
        table, world = _decayed(0, 0.0, 1), _hoffmann_world()
    else:
        return {}
    clean = derive(table, replicates=0, extras=False)
    found = named_estimates(clean)
    return {name: found[name].value - value for name, value in optimal(clean, world).items() if name in found}


def _decayed(seed: int, sigma: float, seeds: int) -> Table:
    a, alpha, b, beta, e = THETA
    law = {"A": math.exp(a), "B": math.exp(b), "E": math.exp(e), "alpha": float(alpha), "beta": float(beta)}
    return decayed_sweep(BUDGETS, law, shapes=SHAPES, sigma=sigma, seeds=seeds, seed=seed)


def _offset(rng: np.random.Generator, replicates: int, seed: int) -> list[Judged]:
    """A power law that levels out, read at twelve points over four decades."""
    x = np.geomspace(1e4, 1e8, 12)
    y = (40 * x**-0.3 + 1.5) * np.exp(0.005 * rng.standard_normal(12))
    found = power_law.fit(x, y, offset=True, bootstrap=replicates, seed=seed)
    return _named("power-law offset", {"coefficient": 40, "exponent": -0.3, "offset": 1.5}, found.estimates)


def _surfaces(rng: np.random.Generator, replicates: int, seed: int) -> list[Judged]:
    """Kaplan's L(N, S_min) and L(N, D), with the constants of his tables, at eight sizes and five amounts each."""
    n, s = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e9, 8), np.geomspace(1e3, 1e5, 5)))
    steps = published.SURFACE.loss(n, s) * np.exp(0.01 * rng.standard_normal(n.size))
    d = s * 1e5
    data = published.DATA_SURFACE.loss(n, d) * np.exp(0.01 * rng.standard_normal(n.size))
    names = ("N_c", "alpha_N", "S_c", "alpha_S"), ("N_c", "alpha_N", "D_c", "alpha_D")
    one = {name: float(getattr(published.SURFACE, name)) for name in names[0]}
    other = {name: float(getattr(published.DATA_SURFACE, name)) for name in names[1]}
    rows = _named("kaplan-ns", one, kaplan_law.fit(n, s, steps, bootstrap=replicates, seed=seed).estimates)
    found = kaplan_loss.fit_params_tokens(n, d, data, bootstrap=replicates, seed=seed)
    return rows + _named("kaplan-nd", other, found.estimates)


def _frontier(rng: np.random.Generator, replicates: int, seed: int) -> list[Judged]:
    """Curves of eight sizes."""
    constants = _with_policy({"A": 400.0, "B": 1100.0, "E": 1.7, "alpha": 0.34, "beta": 0.33})
    params, ln_d = np.geomspace(3e6, 3e8, 8), np.linspace(math.log(3e7), math.log(3e10), 60)
    n, d = (v.ravel() for v in np.meshgrid(params, np.exp(ln_d), indexing="ij"))
    noise = correlated_noise(ln_d, 1.0, rng, 8).ravel()
    loss = (1.7 + 400 / n**0.34 + 1100 / d**0.33) * np.exp(0.003 * noise)
    found = frontier.fit(n, d, loss, bootstrap=replicates, seed=seed)
    truth = {"a": constants["a"], "b": constants["b"], "N_coefficient": constants["G"] / 6 ** constants["a"]}
    truth["D_coefficient"] = 1 / (6 * truth["N_coefficient"])
    return _named("frontier", truth, found.estimates)


def _isoflop(rng: np.random.Generator, replicates: int, seed: int) -> list[Judged]:
    """Nine budgets of seven sizes around the optimum."""
    budgets = np.geomspace(1e16, 1e20, 9)
    constants = _with_policy({"A": 400.0, "B": 1100.0, "E": 1.7, "alpha": 0.34, "beta": 0.33})
    best = constants["G"] * (budgets / 6) ** constants["a"]
    params = best[:, None] * np.exp(rng.uniform(-0.3, 0.3, (9, 1)) + np.linspace(-1.5, 1.5, 7))
    flops = np.broadcast_to(budgets[:, None], params.shape)
    loss = 1.7 + 400 / params**0.34 + 1100 / (flops / (6 * params)) ** 0.33
    loss = loss * np.exp(0.002 * rng.standard_normal(params.shape))
    truth = {"a": constants["a"], "b": constants["b"], "N_coefficient": constants["G"] / 6 ** constants["a"]}
    truth["D_coefficient"] = 1 / (6 * truth["N_coefficient"])
    rows = []
    methods: tuple[isoflop.Method, ...] = ("parabola", "akima")
    for method in methods:
        found = isoflop.fit(params.ravel(), loss.ravel(), flops.ravel(), method=method, bootstrap=replicates, seed=seed)
        rows += _named(f"isoflop {method}", truth, found.estimates)
    return rows


def _critical(rng: np.random.Generator, replicates: int, seed: int) -> list[Judged]:
    """Two models at seven batches and six losses; the noise of one batch is shared by neighbouring losses."""
    truth = Truth()
    batches, targets = 128.0 * 2 ** np.arange(1, 8), np.geomspace(2.9, 2.4, 6)
    columns: dict[str, list[np.ndarray]] = {"group": [], "batch": [], "target": [], "steps": []}
    for params in (6144.0, 24576.0):
        for batch in batches:
            noise = 0.04 * correlated_noise(np.linspace(0, 1, 6), 1.0, rng)[0]
            steps = truth.S_min(params, targets) * (1 + truth.B_crit(targets) / batch)
            columns["steps"].append(steps * np.exp(noise))
            columns["group"].append(np.full(6, params))
            columns["batch"].append(np.full(6, batch))
            columns["target"].append(targets)
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    found = critical_batch.fit(
        table["batch"], table["steps"], table["target"], group=table["group"], bootstrap=replicates, seed=seed
    )
    law = {"B_star": truth.B_star, "alpha_B": truth.alpha_B, "slope": -1 / truth.alpha_B}
    rows = _named("critical-batch", law, found.estimates)
    for keys, outcome in found.groups:
        params, target = float(str(keys["group"])), float(str(keys["target_loss"]))
        s_min, b_crit = float(truth.S_min(params, target)), float(truth.B_crit(target))
        own = {"S_min": s_min, "E_min": s_min * b_crit, "B_crit": b_crit}
        rows += _named("critical-batch target", own, outcome.estimates)
    return rows


def _named(law: str, truth: Mapping[str, float], estimates: Mapping[str, Estimate]) -> list[Judged]:
    """Of the estimates with an interval and a truth; the name says that the law was fitted on its own."""
    return [
        Judged(f"fit {law}.{name}", value, estimates[name])
        for name, value in truth.items()
        if name in estimates and estimates[name].low is not None and estimates[name].high is not None
    ]


def _with_policy(law: Mapping[str, float]) -> dict[str, float]:
    theta = np.array([math.log(law["A"]), law["alpha"], math.log(law["B"]), law["beta"], math.log(law["E"])])
    return {name: float(value[0]) for name, value in parametric.constants(theta[None]).items()}


def _kaplan_world() -> World:
    truth = Truth()
    surface = {"N_c": truth.N_c, "alpha_N": truth.alpha_N, "S_c": truth.S_c, "alpha_S": truth.alpha_S}
    surface["alpha_C_min"] = truth.alpha_C_min
    law = {"B_star": truth.B_star, "alpha_B": truth.alpha_B, "slope": -1 / truth.alpha_B}
    constants = {f"kaplan-ns.{name}": value for name, value in surface.items()}
    constants |= {f"critical-batch.{name}": value for name, value in law.items()}
    theta = [truth.alpha_N * math.log(truth.N_c), truth.alpha_N, truth.alpha_S * math.log(truth.S_c), truth.alpha_S]
    derived = efficiency.derived_laws(np.array([theta]), np.array([[math.log(truth.B_star), -1 / truth.alpha_B]]))
    for quantity, own in derived.items():
        constants[f"{DERIVED}.{exponent_name(quantity)}"] = float(own.exponent[0])
        constants[f"{DERIVED}.{quantity}_coefficient"] = float(np.exp(own.intercept[0]))
    return World(constants, lambda ln_n, ln_tokens: np.asarray(_surface()(ln_n, ln_tokens)[0]), truth)


def _hoffmann_world() -> World:
    constants = {f"parametric.{name}": float(v[0]) for name, v in parametric.constants(THETA[None]).items()}
    return World(constants, lambda ln_n, ln_d: np.log(parametric.predict(THETA, np.exp(ln_n), np.exp(ln_d))))


@cache
def _surface() -> RectBivariateSpline:
    """ln L of `kaplan` at the common batch against (ln N, ln D): the law is implicit, and read millions of times."""
    ln_n, ln_tokens = np.linspace(5, 14, 100), np.linspace(7, 22, 300)
    loss = [Truth().loss(math.exp(n), BATCH, np.exp(ln_tokens) / BATCH) for n in ln_n]
    return RectBivariateSpline(ln_n, ln_tokens, np.log(loss))

"""`critical_batch.fit` on arrays: planted laws with and without noise, scipy, invariances, coverage, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from analysis import critical_batch
from analysis.critical_batch.samples import collect, correlation_length, noise_of
from sweep.schema import InputError

BATCHES = 256 * 2.0 ** np.arange(7)
LOSSES = np.geomspace(3.2, 2.4, 5)
B_STAR, ALPHA_B = 2e6, 0.135


def table(
    sigma: float = 0.0, correlation: float = 0.8, seed: int = 0, batches: np.ndarray = BATCHES, groups: int = 2
) -> dict[str, np.ndarray]:
    """Steps of `groups` models with one law of B_crit; noise of ln S, `correlation` between neighbouring targets."""
    rng = np.random.default_rng(seed)
    place = np.arange(len(LOSSES))
    root = np.linalg.cholesky(correlation ** np.abs(place[:, None] - place))
    model, batch, target = (a.ravel() for a in np.meshgrid(np.arange(groups), batches, place, indexing="ij"))
    noise = sigma * (rng.standard_normal((groups, len(batches), len(place))) @ root.T).ravel()
    loss = LOSSES[target]
    s_min = 39 * (loss - 1.5 - 0.1 * model) ** -1.3
    steps = s_min * (1 + B_STAR * loss ** (-1 / ALPHA_B) / batch) * np.exp(noise)
    return {"batch_tokens": batch, "steps": steps, "target_loss": loss, "group": np.char.add("m", model.astype(str))}


def test_planted_laws_come_back() -> None:
    found = critical_batch.fit(**table())
    assert found.estimates["B_star"].value == pytest.approx(B_STAR, rel=1e-5)
    assert found.estimates["alpha_B"].value == pytest.approx(ALPHA_B, rel=1e-6)
    assert len(found.groups) == 10
    assert not found.warnings
    for keys, part in found.groups:
        s_min = 39 * (keys["target_loss"] - 1.5 - 0.1 * (keys["group"] == "m1")) ** -1.3
        b_crit = B_STAR * keys["target_loss"] ** (-1 / ALPHA_B)
        expected = {"S_min": s_min, "E_min": s_min * b_crit, "B_crit": b_crit, "B_20": 1.2 * 256 + 0.2 * b_crit}
        assert {n: e.value for n, e in part.estimates.items()} == pytest.approx(expected, rel=1e-6)
        assert keys["used"]
    points = found.frames["points"]
    np.testing.assert_allclose(points["fitted"], points["steps"], rtol=1e-6)


def test_one_target_alone() -> None:
    """Without target losses or groups the trade-off itself is the result; errors are those of scipy's covariance."""
    steps = (150 + 7.5e5 / BATCHES) * np.exp(0.05 * np.random.default_rng(0).normal(size=7))
    found = critical_batch.fit(BATCHES, steps, optimal_batch=1024)
    best = least_squares(
        lambda t: np.logaddexp(t[0], t[1] - np.log(BATCHES)) - np.log(steps), np.log([100, 1e6]), xtol=1e-15, ftol=1e-15
    )
    covariance = np.linalg.inv(best.jac.T @ best.jac) * 2 * best.cost / 5
    value = {name: e.value for name, e in found.estimates.items()}
    assert np.log([value["S_min"], value["E_min"]]) == pytest.approx(best.x, rel=1e-7)
    assert value["B_20"] == pytest.approx(1.2 * 1024 + 0.2 * value["B_crit"])
    relative = {
        "S_min": covariance[0, 0],
        "E_min": covariance[1, 1],
        "B_crit": covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1],
    }
    for name, variance in relative.items():
        assert found.estimates[name].se == pytest.approx(value[name] * np.sqrt(variance), rel=1e-4)
    (keys, _part), *rest = found.groups
    assert not rest
    assert (keys["group"], keys["target_loss"]) == (None, None)


def test_bounds_are_flagged_and_no_part_of_the_law() -> None:
    data = table(batches=1500 * 2.0 ** np.arange(4), groups=1)  # B_crit is below 1,500 tokens at three of five targets
    found = critical_batch.fit(**data)
    used = [keys["used"] for keys, _ in found.groups]
    assert used == [False, False, False, True, True]
    assert "below the batches" in found.groups[0][0]["reason"]
    assert found.estimates == {}
    assert {w["code"] for w in found.warnings} == {"not_bracketed", "no_law"}
    json = found.to_json()
    assert json["groups"][0]["used"] is False
    assert json["groups"][3]["estimates"]["B_crit"]["value"] == pytest.approx(B_STAR * LOSSES[3] ** (-1 / ALPHA_B))


def test_targets_with_two_batches_are_said() -> None:
    data = table(groups=1)
    keep = (data["target_loss"] > 2.5) | (data["batch_tokens"] < 1000)
    found = critical_batch.fit(**{name: values[keep] for name, values in data.items()})
    assert len(found.groups) == 4
    assert [w["code"] for w in found.warnings] == ["few_batches"]


def test_correlation_between_targets_is_found() -> None:
    lengths = []
    for seed in range(10):
        data = table(sigma=0.05, correlation=0.8, seed=seed)
        groups = [
            collect(data["batch_tokens"], data["steps"], np.log(data["target_loss"]), np.flatnonzero(rows), "m")
            for rows in (data["group"] == "m0", data["group"] == "m1")
        ]
        lengths.append(correlation_length(groups))
    step = np.log(LOSSES[0] / LOSSES[1])
    assert np.exp(-step / np.median(lengths)) == pytest.approx(0.8, abs=0.1)
    # Five targets that go together have hardly more degrees of freedom than one; independent ones have all.
    assert noise_of(groups[0], 100 * step).freedom == pytest.approx(5, rel=0.05)
    assert noise_of(groups[0], 0.01 * step).freedom == pytest.approx(25)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """40 tables; the band is that of a binomial with p = 0.9 at 99.9%: 29 to 40."""
    hits = dict.fromkeys(("slope", "B_star", "B_crit"), 0)
    for seed in range(40):
        found = critical_batch.fit(**table(sigma=0.05, seed=seed, batches=BATCHES[::2]), bootstrap=100, seed=seed)
        keys, part = found.groups[2]
        truth = {"slope": -1 / ALPHA_B, "B_star": B_STAR, "B_crit": B_STAR * keys["target_loss"] ** (-1 / ALPHA_B)}
        for name, value in truth.items():
            estimate = part.estimates[name] if name == "B_crit" else found.estimates[name]
            assert estimate.low is not None
            assert estimate.high is not None
            hits[name] += estimate.low <= value <= estimate.high
    assert min(hits.values()) >= 29, hits


def test_draws_are_joint_and_the_same_under_a_seed() -> None:
    one, same, other = (critical_batch.fit(**table(sigma=0.03), bootstrap=20, seed=s) for s in (1, 1, 2))
    for name in ("B_star", "alpha_B", "slope"):
        np.testing.assert_array_equal(one.draws[name], same.draws[name])
        assert (one.draws[name] != other.draws[name]).all()
    np.testing.assert_allclose(one.draws["alpha_B"], -1 / one.draws["slope"])
    part = one.groups[0][1]
    np.testing.assert_allclose(part.draws["E_min"], part.draws["B_crit"] * part.draws["S_min"])
    assert one.to_json()["interval"].endswith("degrees of freedom)")


@settings(max_examples=8, deadline=None)
@given(b=st.floats(1e-3, 1e6), s=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_units_move_only_what_they_should(b: float, s: float, seed: int) -> None:
    """Batches times b: E_min, B_crit and B_star times b. Steps times s: S_min and E_min times s."""
    data = table(sigma=0.03, seed=seed, groups=1)
    scaled = data | {"batch_tokens": b * data["batch_tokens"], "steps": s * data["steps"]}
    one, other = critical_batch.fit(**data), critical_batch.fit(**scaled)
    factors = {"B_star": b, "alpha_B": 1, "slope": 1}
    parts = {"S_min": s, "E_min": s * b, "B_crit": b, "B_20": b}
    pairs = [(one, other, factors), *((p, q, parts) for (_, p), (_, q) in zip(one.groups, other.groups, strict=True))]
    for before, after, factor in pairs:
        for name, f in factor.items():
            was, now = before.estimates[name], after.estimates[name]
            assert (now.value, now.se) == pytest.approx((f * was.value, f * was.se), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [900.0, 500, -1]}, "steps must be positive"),
        ({"batch_tokens": [256.0, 512, np.nan]}, "batch_tokens must be positive"),
        ({"target_loss": [2.0, 0, 2.0]}, "target_loss must be positive"),
        ({"batch_tokens": [256.0, 512, 512]}, "2 batch sizes"),
        ({"target_loss": [2.0, 2.1, 2.2]}, "at least 3 at one target loss"),
        ({"group": ["a", "b"]}, "one length"),
    ],
)
def test_unusable_input_is_refused(change: dict[str, list[float]], message: str) -> None:
    good = {"batch_tokens": [256.0, 512, 1024], "steps": [900.0, 500, 300]}
    with pytest.raises(InputError, match=message):
        critical_batch.fit(**{name: np.array(values) for name, values in (good | change).items()})

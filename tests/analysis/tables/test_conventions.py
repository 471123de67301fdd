"""N and C of one table under each convention, by hand and against the sweep's own accounting."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.tables.conventions import CONVENTIONS, apply, count
from analysis.tables.runs import extract
from analysis.tables.table import Table, make_table
from analysis.uncertainty.simulate import decayed_sweep
from sweep.accounting import count_flops, count_params, hoffmann_flops
from sweep.schema import InputError
from sweep.spec import ModelSpec

MODEL = ModelSpec(family="gpt2", n_layer=3, d_model=8, n_head=2, d_head=4, d_ff=32, n_ctx=16, vocab_size=100)


def table_of(model: ModelSpec) -> Table:
    """One run of `model`, 1000 tokens, with what the sweep records of it."""
    params, flops = count_params(model), count_flops(model)
    row: dict[str, object] = {"run_id": "r", "batch_tokens": 100, "lr": 1e-3, "schedule": "cosine", "seed": 0}
    row |= {"status": "done", "params": params.params, "params_total": params.total}
    row |= {f"params_{name}": getattr(params, name) for name in ("embedding", "attention", "mlp", "head")}
    row |= {"flops_per_token": flops.matrices, "flops_per_token_context": flops.context}
    row |= {"flops_per_token_head": flops.head, "tokens": 1000.0, "flops": flops.matrices * 1000.0}
    row |= {name: getattr(model, name) for name in ("n_layer", "n_head", "n_ctx", "d_model", "d_head", "d_ff")}
    curve = {"run_id": "r", "step": [5, 10], "tokens": [500.0, 1000.0], "test_loss": [3.0, 2.0]}
    return make_table(pd.DataFrame([row]), pd.DataFrame(curve))


def test_numbers_by_hand() -> None:
    """12 n d^2 = 2304 in matrices, a head of 100 x 8 = 800, and 3 x (3 x 8 + 8 + 32 + 8 + 4 x 8) + 16 = 328 in biases
    and norms, 800 + 16 x 8 = 928 in embeddings."""
    expected = {
        "kaplan": (2304, 6 * 2304),
        "with_head": (3104, 6 * 3104),
        "total": (2304 + 328 + 928, 6 * 3560),
        "chinchilla": (3560, 3 * (2 * 2304 + 3 * (2 * 2 * 16 * 8 + 3 * 2 * 16) + 2 * 2 * 800)),
    }
    table = table_of(MODEL)
    for convention, (params, per_token) in expected.items():
        found = apply(table, convention)
        assert found.runs["params"].tolist() == [params], convention
        assert found.runs["flops_per_token"].tolist() == [per_token], convention
        assert found.runs["flops"].tolist() == [1000 * per_token]
        assert found.runs.dtypes.equals(table.runs.dtypes)
        (run,) = extract(found)
        assert (run.params, run.flops_per_token) == (params, per_token)
        assert run.final_flops == pytest.approx(1000 * per_token)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_chinchilla_is_appendix_f_in_full(family: str) -> None:
    model = ModelSpec(family=family, n_layer=2, d_model=64, n_head=4, d_head=16, d_ff=256, n_ctx=32, vocab_size=500)  # type: ignore[arg-type]
    _, per_token = count(table_of(model).runs, "chinchilla")
    expected = hoffmann_flops(64, 256, 16, 4, 2, vocab=500, seq_len=32)
    if family == "llama":  # the third matrix of SwiGLU, which App. F does not know
        expected += 3 * 32 * 2 * 2 * 64 * 256
    assert per_token[0] * 32 == expected


def test_conventions_follow_on_each_other_in_any_order() -> None:
    table = decayed_sweep([1e10, 1e11])
    again = table
    for convention in (*CONVENTIONS[::-1], "kaplan"):
        again = apply(again, convention)
    pd.testing.assert_frame_equal(again.runs, table.runs)
    pd.testing.assert_frame_equal(again.curves, table.curves)


def test_a_table_without_components_has_its_own_params_and_no_other_convention() -> None:
    runs = pd.DataFrame({"run_id": ["r"], "params": [1000], "batch_tokens": 10, "lr": 0.1, "schedule": "cosine",
                         "seed": 0, "status": "done"})  # fmt: skip
    curves = pd.DataFrame({"run_id": "r", "step": [1], "tokens": [10.0], "test_loss": [2.0]})
    table = make_table(runs, curves, source="mine.csv")
    found = apply(table, "kaplan").runs
    assert (found["params"][0], found["flops_per_token"][0], found["flops"][0]) == (1000, 6000, 60000)
    with pytest.raises(InputError, match=r"^mine.csv: convention total needs params_total of every run; add it") as e:
        apply(table, "total")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="params_attention, params_mlp and flops_per_token_head of every run"):
        apply(table, "with_head")
    with pytest.raises(InputError, match=r"convention 'porian' is not known; use one of kaplan, with_head"):
        apply(table, "porian")


def test_one_run_without_a_component_is_enough() -> None:
    table = decayed_sweep([1e10])
    runs = table.runs.assign(params_total=table.runs["params_total"].where(np.arange(len(table.runs)) > 0))
    with pytest.raises(InputError, match="params_total of every run"):
        count(runs, "total")

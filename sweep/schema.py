"""The record's schema: the only thing that `sweep` (which writes) and `analysis` (which reads) share.

Units: losses are nats per token, FLOPs are FLOPs (never PF-days), batches and horizons are tokens, times are seconds.
"""

from __future__ import annotations

PF_DAY = 8.64e19  # FLOP in one petaflop/s-day; for axes only (Kaplan et al. 2020, section 1.3)

# A run's life. `planned` and `running` are unfinished; the others are results.
STATUSES = ("planned", "running", "done", "failed", "diverged", "out_of_memory")

# Files of a sweep directory.
PLAN_FILE = "plan.jsonl"
RUNS_DIR = "runs"
RUNS_TABLE = "runs.parquet"
CURVES_TABLE = "curves.parquet"

# Files of a run directory, SWEEP_DIR/runs/RUN_ID/.
SPEC_FILE = "spec.json"
MANIFEST_FILE = "manifest.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
STEPS_FILE = "steps.npz"
CHECKPOINT_DIR = "checkpoint"

# One row a run.
RUN_COLUMNS: dict[str, str] = {
    "run_id": "string",  # hash of the scientific fields
    "family": "string",  # gpt2 or llama
    "n_layer": "Int64",
    "d_model": "Int64",
    "n_head": "Int64",
    "d_head": "Int64",
    "d_ff": "Int64",
    "n_ctx": "Int64",  # tokens a sequence
    "vocab_size": "Int64",
    "params_embedding": "Int64",
    "params_position": "Int64",
    "params_attention": "Int64",
    "params_mlp": "Int64",
    "params_norm_bias": "Int64",
    "params_head": "Int64",  # 0 where the head is tied to the embedding
    "params_total": "Int64",
    "params": "Int64",  # N = attention + mlp matrices (Kaplan et al. 2020, Eq. 2.1)
    "flops_per_token": "Float64",  # 6 N, forward and backward
    "flops_per_token_context": "Float64",  # attention over the context, forward and backward
    "flops_per_token_head": "Float64",  # logits, forward and backward
    "batch_tokens": "Int64",  # B
    "steps": "Int64",  # planned updates
    "tokens": "Float64",  # D = B times the planned updates
    "flops": "Float64",  # C = 6 N D
    "optimizer": "string",
    "lr": "Float64",  # peak learning rate
    "beta2": "Float64",
    "weight_decay": "Float64",
    "schedule": "string",  # constant, linear, cosine, wsd, inverse_sqrt
    "schedule_steps": "Int64",  # length of the schedule, which may exceed `steps`
    "warmup_tokens": "Float64",
    "weight_average": "Float64",  # window of the evaluated average as a share of the steps so far; 0: none
    "precision": "string",  # fp32, tf32 or bf16
    "seed": "Int64",
    "status": "string",  # one of STATUSES
    "test_loss": "Float64",  # at the last evaluation
    "test_loss_se": "Float64",  # over test sequences; shared by all runs on one test set
    "unique_tokens": "Float64",  # tokens of the training split
    "epochs": "Float64",  # passes over them by the end of the run
    "bytes_per_token": "Float64",
    "data_name": "string",
    "data_hash": "string",  # of the token file
    "wall_s": "Float64",
    "tokens_per_s": "Float64",
    "mfu": "Float64",  # achieved FLOP/s as a share of the device's matrix peak; null where the peak is unknown
    "device": "string",
}

# One row an evaluation.
CURVE_COLUMNS: dict[str, str] = {
    "run_id": "string",
    "step": "Int64",
    "tokens": "Float64",  # seen by the model at this evaluation
    "flops": "Float64",  # 6 N tokens
    "train_loss": "Float64",  # mean over the steps since the evaluation before
    "test_loss": "Float64",
    "test_loss_se": "Float64",
    "lr": "Float64",
    "grad_norm": "Float64",  # before clipping, at this step
    "elapsed_s": "Float64",
}


class InputError(ValueError):
    """The input is unusable. The message is one line: what, where, and how to mend it. Exit code 2."""

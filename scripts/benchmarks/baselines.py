"""What isoloss's training is compared with: an ordinary loop over the transformers model, and transformers' Trainer.

Both are written as their users write them, on the same weights, tokens, learning rates and clipping: eager modules,
SDPA attention, the whole batch at once. `train_plain` is the loop as one process trains one run, with the evaluations
of the plan.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sweep.batches import Sequences, test_sequences
from sweep.corpus import Corpus
from sweep.evaluate import evaluation_steps
from sweep.model import initial_parameters, transformers_model
from sweep.schedule import average_coefficient, learning_rate
from sweep.spec import PlannedRun, RunSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATED = 16  # sequences of one pass of an evaluation


def fresh_model(spec: RunSpec, device: str) -> PreTrainedModel:
    """The transformers model with the initial weights of a run."""
    return transformers_model(spec.model, initial_parameters(spec.model, spec.seed)).to(device)


def casting(precision: str, device: str) -> AbstractContextManager[object]:
    """torch's autocast for precision bf16, else nothing."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def mean_loss(model: PreTrainedModel, sequences: Tensor, context: AbstractContextManager[object]) -> float:
    """Mean loss in nats per token over `sequences` [n, n_ctx + 1]."""
    total = 0.0
    with torch.no_grad(), context:
        for batch in sequences.split(EVALUATED):
            logits = model(input_ids=batch[:, :-1]).logits.float()
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / sequences[:, 1:].numel()


class PlainLoop:
    """The loop that tutorials teach: the model's logits, cross-entropy, clipping, torch.optim.AdamW as it comes, a
    scheduler. Where the run wants an average of its weights, that is one more update of all tensors."""

    def __init__(self, spec: RunSpec, device: str) -> None:
        """At step 0. The optimiser has to be AdamW."""
        assert spec.optimizer.name == "adamw", spec.optimizer.name
        self.spec, self.model = spec, fresh_model(spec, device)
        self.weights: list[Tensor] = list(self.model.parameters())
        matrices = [w for w in self.weights if w.ndim >= 2]
        vectors = [w for w in self.weights if w.ndim < 2]
        o = spec.optimizer
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(spec.schedule, 1.0, step)
        )
        self.average = [w.detach().clone() for w in self.weights] if spec.weight_average else None
        self.context = casting(spec.precision, device)
        self.steps = 0

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One update on a batch [sequences, n_ctx]; returns its mean loss, on the device."""
        with self.context:
            logits = self.model(input_ids=tokens).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        if self.spec.optimizer.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.spec.optimizer.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.average is not None:
            share = average_coefficient(self.spec.weight_average, self.steps)
            torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], share)
        return loss.detach()

    def evaluate(self, sequences: Tensor) -> float:
        """Mean loss in nats per token over `sequences` [n, n_ctx + 1], under the average where one is kept."""
        if self.average is None:
            return mean_loss(self.model, sequences, self.context)
        kept = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)
            loss = mean_loss(self.model, sequences, self.context)
            torch._foreach_copy_(self.weights, kept)
        return loss


def train_plain(planned: PlannedRun, corpus: Corpus, device: str, metrics: Path) -> None:
    """Train one run by the plain loop and write its evaluations, those of the plan, to `metrics`, one a line."""
    torch.set_num_threads(planned.execution.threads)
    spec = planned.spec
    loop, size = PlainLoop(spec, device), spec.batch_sequences
    sequences = Sequences(corpus.train, spec.model.n_ctx, spec.seed)
    test = torch.from_numpy(test_sequences(corpus.test, spec.model.n_ctx, spec.data.test_tokens)).to(device)
    due = set(evaluation_steps(spec, planned.execution))
    started = time.perf_counter()
    with metrics.open("w") as file:
        for step in range(spec.steps):
            batch = torch.from_numpy(sequences.samples(step * size, size)).to(device)
            loop.step(batch[:, :-1], batch[:, 1:])
            if step + 1 in due:
                loss = loop.evaluate(test)
                row = {"step": step + 1, "test_loss": loss, "elapsed_s": time.perf_counter() - started}
                file.write(json.dumps(row) + "\n")


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples of a token file as transformers' Trainer wants them."""

    def __init__(self, sequences: Sequences, count: int) -> None:
        """The first `count` samples."""
        self.sequences, self.count = sequences, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.from_numpy(self.sequences.samples(index, 1)[0, :-1])
        return {"input_ids": tokens, "labels": tokens}


def train_trainer(
    model: PreTrainedModel, spec: RunSpec, sequences: Sequences, device: str, warm_up: int, steps: int, folder: Path
) -> float:
    """Seconds that transformers' Trainer takes for `steps` updates of `model` after `warm_up` further ones.

    It has its own default optimiser (AdamW, fused) and loss, reads `sequences` through its data loader, and saves and
    logs nothing. Needs the package accelerate.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils.logging import set_verbosity_error

    times: dict[int, float] = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (warm_up, warm_up + steps):
                synchronize(device)
                times[state.global_step] = time.perf_counter()

    o = spec.optimizer
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=spec.batch_sequences,
        max_steps=warm_up + steps,
        learning_rate=o.lr,
        lr_scheduler_type="constant",
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_epsilon=o.eps,
        weight_decay=o.weight_decay,
        max_grad_norm=o.grad_clip,
        bf16=spec.precision == "bf16",
        use_cpu=device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
        seed=spec.seed,
    )
    set_verbosity_error()
    samples = min(sequences.per_epoch, (warm_up + steps) * spec.batch_sequences)
    trainer = Trainer(model=model, args=arguments, train_dataset=Windows(sequences, samples), callbacks=[Clock()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times[warm_up + steps] - times[warm_up]


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()

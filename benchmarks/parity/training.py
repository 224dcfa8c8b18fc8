"""Settings of the loop: precision, accumulation, schedules, bad numbers, checkpoints, callbacks, optimizers, data."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import schedulefree
import torch
import torchmetrics
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from benchmarks.parity.tasks import (
    CLASSES,
    RATE,
    ConvNet,
    Noisy,
    adversarial,
    fitted,
    outcome,
    perceptron,
    pictures,
    points,
    setting,
    sgd,
    train,
    trainer,
    val,
)
from mxtorch import Callback, ScheduledOptim, Trainer, mixing, schedules
from mxtorch.callbacks import EMA, SWA, BestWeights, Checkpoint, EarlyStopping, Freeze, Unfreeze

# ---------------------------------------------------------------- precision, accumulation, clipping


@setting
def fp32(folder: Path) -> dict[str, Any]:
    """The plain case."""
    return fitted(trainer())


@setting
def bf16(folder: Path) -> dict[str, Any]:
    """Autocast in bfloat16."""
    return fitted(trainer(precision="bf16"))


@setting
def fp16(folder: Path) -> dict[str, Any]:
    """Autocast in float16, with a gradient scaler."""
    return fitted(trainer(precision="fp16"), schedule="one_cycle", lr=RATE)


@setting
def fp16_with_skips(folder: Path) -> dict[str, Any]:
    """Losses so high that the scaler skips the first steps."""
    loss = nn.CrossEntropyLoss()
    trained = trainer(loss=lambda outputs, targets: 1e4 * loss(outputs, targets), precision="fp16", clip_grad_norm=1.0)
    return fitted(trained, schedule="one_cycle", lr=RATE)


@setting
def adamw(folder: Path) -> dict[str, Any]:
    """Another optimizer, in two parameter groups, of which `lr` sets the first."""
    model = perceptron()
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[2].parameters(), "lr": 1e-2}]
    return fitted(trainer(model, torch.optim.AdamW(groups)), lr=3e-3)


@setting
def accumulation_with_a_rest(folder: Path) -> dict[str, Any]:
    """Three batches a step, of 11 batches, the last of which has a single sample."""
    return fitted(trainer(accumulate=3), train(points(101)))


@setting
def accumulation_in_half(folder: Path) -> dict[str, Any]:
    """Accumulation, clipping and a schedule under the gradient scaler."""
    trained = trainer(accumulate=4, precision="fp16", clip_grad_norm=0.5)
    return fitted(trained, schedule="warmup_cosine", lr=RATE)


@setting
def clip_by_norm(folder: Path) -> dict[str, Any]:
    """The norm of all gradients."""
    return fitted(trainer(clip_grad_norm=0.3))


@setting
def clip_by_value(folder: Path) -> dict[str, Any]:
    """Each value, then the norm."""
    return fitted(trainer(clip_grad_value=0.01, clip_grad_norm=0.05))


# ---------------------------------------------------------------- schedules


@setting
def one_cycle(folder: Path) -> dict[str, Any]:
    """By name, its length filled in."""
    return fitted(trainer(), schedule="one_cycle", lr=RATE)


@setting
def warmup_cosine(folder: Path) -> dict[str, Any]:
    """With settings of its own."""
    return fitted(trainer(), schedule=schedules.WarmupCosine(warmup_steps=4, end_factor=0.1), lr=RATE)


@setting
def callable_schedule(folder: Path) -> dict[str, Any]:
    """A function of the step."""
    return fitted(trainer(), schedule=lambda step: 1 / (1 + 0.1 * step), lr=RATE)


@setting
def schedule_goes_on(folder: Path) -> dict[str, Any]:
    """The optimizer's own schedule, over two calls of `fit`."""
    model = perceptron()
    trained = trainer(model, ScheduledOptim(sgd(model), schedules.Exponential(0.95)))
    trained.fit(train(), epochs=1)
    return fitted(trained, epochs=2)


@setting
def torch_scheduler_by_step(folder: Path) -> dict[str, Any]:
    """Torch's OneCycleLR."""
    trained = trainer()
    scheduler = lr_scheduler.OneCycleLR(trained.optimizer, max_lr=RATE, total_steps=30)
    return fitted(trained, schedule=scheduler, schedule_every="step")


@setting
def torch_scheduler_by_epoch(folder: Path) -> dict[str, Any]:
    """Torch's StepLR."""
    trained = trainer()
    return fitted(trained, schedule=lr_scheduler.StepLR(trained.optimizer, 1, 0.3), schedule_every="epoch")


@setting
def reduce_on_plateau(folder: Path) -> dict[str, Any]:
    """Torch's ReduceLROnPlateau, of the validation loss."""
    trained = trainer()
    scheduler = lr_scheduler.ReduceLROnPlateau(trained.optimizer, factor=0.5, patience=0, threshold=0.3)
    return fitted(trained, schedule=scheduler, schedule_every="epoch", epochs=5)


# ---------------------------------------------------------------- bad numbers


def hiccup(call: int, *, of_gradient: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that is NaN, or has a gradient that is, at one call, counted over the life of the function."""
    calls, loss = itertools.count(1), nn.CrossEntropyLoss()

    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        value = loss(outputs, targets)
        if not outputs.requires_grad or next(calls) != call:
            return value
        return value + (0 * outputs.sum()).sqrt() if of_gradient else value * float("nan")

    return function


@setting
def skip_a_bad_loss(folder: Path) -> dict[str, Any]:
    """One sample of the data is NaN, and running statistics must not hear of it."""
    data = pictures()
    data.tensors[0][5, 0, 0, 0] = float("nan")
    trained = trainer(ConvNet(), on_nonfinite="skip", accumulate=2)
    return fitted(trained, train(data, 6), val(pictures(20, 2)), schedule="one_cycle", lr=RATE)


@setting
def skip_a_bad_gradient(folder: Path) -> dict[str, Any]:
    """The loss is a number, its gradient is not."""
    return fitted(trainer(loss=hiccup(7, of_gradient=True), on_nonfinite="skip"))


@setting
def raise_at_a_bad_loss(folder: Path) -> dict[str, Any]:
    """What is left behind."""
    trained = trainer(loss=hiccup(14))
    with contextlib.suppress(FloatingPointError):
        trained.fit(train(), epochs=3)
        raise AssertionError("fit did not raise for a NaN")
    return outcome(trained)


@setting
def rollback(folder: Path) -> dict[str, Any]:
    """Back to the checkpoint of step 12, and on at half the rate."""
    callbacks = [Checkpoint(folder / "checkpoints", every=4)]
    return fitted(trainer(loss=hiccup(14), on_nonfinite="rollback", callbacks=callbacks))


# ---------------------------------------------------------------- checkpoints


class StoppedError(Exception):
    """Ends a run in the middle of an epoch."""


class SaveAndStop(Callback):
    """Saves at a step, and ends the run there."""

    def __init__(self, path: Path, step: int | None) -> None:
        self.path, self.step = path, step

    def on_step(self, trainer: Trainer) -> None:
        """Once."""
        if trainer.step == self.step:
            trainer.save(self.path)
            raise StoppedError


def resumed(folder: Path, data: Callable[[], Any], *, fit: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The outcome of a run that was stopped at step 13, in its second epoch, and gone on with by another trainer."""
    path = folder / "one.ckpt"
    with contextlib.suppress(StoppedError):
        fitted(trainer(callbacks=[SaveAndStop(path, 13)], **options), data(), **fit)
        raise AssertionError("the run was not stopped")
    return fitted(trainer(callbacks=[SaveAndStop(path, None)], **options), data(), **fit, resume=path)


@setting
def resume_in_mid_epoch(folder: Path) -> dict[str, Any]:
    """Saved by a callback, with a schedule and training metrics on their way."""
    metrics = {"accuracy": torchmetrics.classification.MulticlassAccuracy(CLASSES)}
    return resumed(folder, train, fit={"schedule": "one_cycle", "lr": RATE}, train_metrics=metrics)


@setting
def resume_in_half(folder: Path) -> dict[str, Any]:
    """With a gradient scaler, accumulation, and workers."""
    options = {"precision": "fp16", "accumulate": 2}
    return resumed(folder, lambda: train(Noisy(240), num_workers=1), fit={"lr": RATE}, **options)


@setting
def resume_automatically(folder: Path) -> dict[str, Any]:
    """SIGTERM in the second epoch, and on from what the Checkpoint callback wrote."""

    class Kill(Callback):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)

    def make() -> Trainer:
        return trainer(callbacks=[Checkpoint(folder / "checkpoints", every=5), EMA(0.9), Kill()])

    kill_at = 17
    with contextlib.suppress(SystemExit):
        fitted(make())
        raise AssertionError("the run was not ended")
    kill_at = 0
    return fitted(make(), resume="auto")


@setting
def save_and_load(folder: Path) -> dict[str, Any]:
    """Another trainer goes on with a new run."""
    first = trainer()
    first.fit(train(), epochs=1, lr=RATE, schedule=schedules.CosineAnnealing(40))
    first.save(folder / "one.ckpt")
    second = trainer()
    second.load(folder / "one.ckpt")
    return fitted(second, epochs=2)


# ---------------------------------------------------------------- callbacks


@setting
def ema(folder: Path) -> dict[str, Any]:
    """The exponential average is validated, and left in the model."""
    return fitted(trainer(ConvNet(), callbacks=[EMA(0.9)]), train(pictures(), 8), val(pictures(20, 2)))


@setting
def swa(folder: Path) -> dict[str, Any]:
    """With running statistics of its own."""
    data = train(pictures(), 8)
    return fitted(trainer(ConvNet(), callbacks=[SWA(data, start=0.3)]), data, val(pictures(20, 2)))


@setting
def best_weights(folder: Path) -> dict[str, Any]:
    """A rate so high that the run is stopped early."""
    callbacks = [BestWeights(), EarlyStopping(patience=2)]
    return fitted(trainer(callbacks=callbacks), lr=1.0, epochs=12)


@setting
def freeze_and_unfreeze(folder: Path) -> dict[str, Any]:
    """Layers that stop, and others that begin, in mid-run."""
    model = perceptron()
    callbacks = [Unfreeze("0", epoch=2), Freeze("2", epoch=3)]
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return fitted(trainer(model, callbacks=callbacks), epochs=4)


# ---------------------------------------------------------------- optimizers


@setting
def lbfgs(folder: Path) -> dict[str, Any]:
    """An optimizer that takes a closure."""
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4, history_size=3)
    return fitted(trainer(model, optimizer), train(batch_size=50))


@setting
def schedule_free(folder: Path) -> dict[str, Any]:
    """An optimizer with a train() and an eval() of its own."""
    model = perceptron()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01, warmup_steps=3)
    return fitted(trainer(model, optimizer))


@setting
def two_optimizers(folder: Path) -> dict[str, Any]:
    """The two of a generative adversarial network."""
    trained, data = adversarial()
    trained.fit(data, epochs=3, schedule="one_cycle", lr=1e-2)
    return outcome(trained, DataLoader(points(20, 2).tensors[0], 8))


# ---------------------------------------------------------------- data


class Stream(IterableDataset[Any]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from points(95)


@setting
def iterable_data(folder: Path) -> dict[str, Any]:
    """Whose epochs are as long as it gives batches."""
    return fitted(trainer(accumulate=2), DataLoader(Stream(), 10))


@setting
def iterable_data_cut(folder: Path) -> dict[str, Any]:
    """Whose epochs are cut, with a schedule of that length."""
    return fitted(trainer(), DataLoader(Stream(), 10), steps_per_epoch=7, schedule="cosine_annealing", lr=RATE)


@setting
def workers(folder: Path) -> dict[str, Any]:
    """Two processes that draw random numbers."""
    return fitted(trainer(), train(Noisy(), num_workers=2))


@setting
def persistent_workers(folder: Path) -> dict[str, Any]:
    """Which keep their random states from epoch to epoch."""
    return fitted(trainer(), train(Noisy(), num_workers=2, persistent_workers=True))


class WithLoss(nn.Module):
    """A model in Hugging Face's manner: named inputs, and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where there are labels."""
        logits = self.network(inputs)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


class Named(Dataset[Any]):
    """Samples as dictionaries."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, labels = self.data[index]
        return {"inputs": inputs, "labels": labels}


@setting
def dictionary_batches(folder: Path) -> dict[str, Any]:
    """A model that returns `.loss`."""
    metrics = torchmetrics.classification.MulticlassAccuracy(CLASSES)
    return fitted(trainer(WithLoss(), loss=None, metrics=metrics), train(Named(points())), val(Named(points(41, 2))))


@setting
def mixup(folder: Path) -> dict[str, Any]:
    """Mixup and CutMix around a loader."""
    return fitted(trainer(ConvNet()), mixing.Mixed(train(pictures(), 8), num_classes=CLASSES), val(pictures(20, 2)))


@setting
def out_of_memory(folder: Path) -> dict[str, Any]:
    """A model that can't take more than four samples, so batches are taken in parts."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = perceptron()

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training and len(inputs) > 4:
                raise torch.OutOfMemoryError("no more than four samples")
            return self.network(inputs)

    return fitted(trainer(Small()), auto_accumulate=True)

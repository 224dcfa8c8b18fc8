"""What happens on one process of several only: no process hangs, and each names the cause."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch
from launching import launch, values
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint, EarlyStopping
from mxtorch.checkpointing import file as checkpoint_file

MOST_SECONDS = 25.0  # of which five are the time that the others are given to end by themselves


class Samples(Dataset):
    """Vectors of two classes; what is wrong with it is so on the process that reads sample 37."""

    def __init__(self, count: int = 96, fault: str = "") -> None:
        self.count, self.fault = count, fault

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        numbers = torch.full((4,), float(index % 7 - 3)) + torch.arange(4.0)
        label = index % 2
        if index == 37:
            if self.fault == "sample":
                raise OSError("sample 37 can't be read")
            if self.fault == "nan":
                numbers[2] = float("nan")
            if self.fault == "label":
                label = 5
        if index == 3 and self.fault == "first label":
            label = 9
        return numbers, label


class Stream(IterableDataset):
    """A stream in an order that only this process knows."""

    def __init__(self, order: int) -> None:
        self.order = order

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.order)
        for _ in range(64):
            yield torch.randn(4, generator=generator), 1


class Failing(Callback):
    """Fails at one hook."""

    def __init__(self, hook: str, act) -> None:
        self.act, self.times = act, 0
        self._hook = hook


def _fails_at(hook: str):
    def listener(self, *arguments):
        if self._hook == hook:
            self.times += 1
            if self.times == (2 if hook == "on_step" else 1):
                self.act()

    return listener


HOOKS = [name for name in vars(Callback) if name.startswith("on_") and name not in ("on_lr_found", "on_interpreted")]
for _name in HOOKS:
    setattr(Failing, _name, _fails_at(_name))


class Stepping(Trainer):
    """Fails in a step."""

    fault = ""
    steps = 0

    def training_step(self, batch):
        self.steps += 1
        if self.steps == 3:
            if self.fault == "before the model":
                raise KeyError("no such column")
            if self.fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            if self.fault == "exit":
                raise SystemExit("the step has had enough")
            if self.fault == "interrupt":
                raise KeyboardInterrupt("the step was interrupted")
            if self.fault == "dies":
                os._exit(3)
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        output = super().training_step(batch)
        if self.steps == 3 and self.fault == "after the model":
            raise RuntimeError("the loss has a wrong sign")
        return output

    def evaluation_step(self, batch):
        if self.fault == "evaluation":
            raise AssertionError("evaluation is not written yet")
        return super().evaluation_step(batch)

    def prediction_step(self, batch):
        if self.fault == "prediction":
            raise RuntimeError("prediction is not written yet")
        return super().prediction_step(batch)


class BadMetric(MulticlassAccuracy):
    def update(self, *arguments):
        raise TypeError("this metric counts nothing")


def broken() -> None:
    raise ValueError("the callback is broken")


def run(rank: int, fault: str, folder: str) -> None:
    here = rank == 1  # the process that is at fault
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    if fault == "another model" and here:
        net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    if fault == "unused parameters":
        net.forward = lambda inputs: net[2](net[1](net[0](inputs)))
        net.append(nn.Linear(3, 3))
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), 0.05)
    if fault == "closures":
        optimizer = torch.optim.LBFGS(net.parameters())
    if fault == "update" and here:
        optimizer.register_step_pre_hook(lambda *arguments: (_ for _ in ()).throw(RuntimeError("the optimizer jams")))
    callbacks: list[Callback] = []
    if fault.startswith("on_"):
        callbacks.append(Failing(fault, broken if here else lambda: None))
    if fault == "callbacks" and here:
        callbacks.append(EarlyStopping("train/loss"))
    if fault == "disk":
        callbacks.append(Checkpoint(folder, every=2))
        if rank == 0:

            def full(path, content):
                raise OSError(28, "No space left on device", str(path))

            checkpoint_file.write = full
            import mxtorch.callbacks.checkpoint as module

            module.write = full
    kind = Samples(fault=fault if fault in ("sample", "nan", "label", "first label") else "")
    workers = 1 if fault == "workers" else 0
    if fault == "workers":
        kind = Samples(fault="sample")
    data = DataLoader(kind, 8, num_workers=workers)
    if fault == "collate" and here:
        data = DataLoader(kind, 8, collate_fn=lambda items: (_ for _ in ()).throw(ValueError("items do not stack")))
    if fault == "batch size" and here:
        data = DataLoader(kind, 6)
    if fault == "length" and here:
        data = DataLoader(Samples(80), 8)
    if fault == "too few":
        data = DataLoader(Samples(1), 8)
    if fault == "stream":
        data = DataLoader(Stream(rank), 8)
    if fault == "no validation":
        val_data = None if here else DataLoader(Samples(20), 8)
    else:
        val_data = DataLoader(Samples(20), 8)
    loss = nn.CrossEntropyLoss()
    if fault == "loss" and here:

        def loss(outputs, targets):
            raise ZeroDivisionError("the loss divides by zero")

    metrics = {"accuracy": BadMetric(2) if fault == "metric" and here else MulticlassAccuracy(2)}
    trainer = Stepping(
        net, loss, optimizer, metrics=metrics, callbacks=callbacks, device="cpu", progress=False, log_every=4,
        accumulate=2 if fault == "accumulate" and here else 1,
    )  # fmt: skip
    trainer.fault = fault if here else ""
    if fault == "ends before" and here:
        raise SystemExit(0)
    if fault == "another call" and here:
        trainer.evaluate(val_data)
    if fault == "find_lr":
        trainer.fault = "after the model" if here else ""
        trainer.find_lr(data, epochs=2, budget=2.0)
    if fault == "prediction":
        trainer.predict(data)
    within = {"validate_every": 3} if fault == "on_validated" else {}
    trainer.fit(
        data,
        val_data,
        epochs=3 if fault == "epochs" and here else 2,
        lr=0.1 if fault == "rate" and here else 0.2,
        **within,
    )


# What is wrong on process 1 (or on the main one, where it writes), and what both name.
FAULTS = {
    "sample": "sample 37 can't be read",
    "workers": "sample 37 can't be read",
    "nan": "on process [01], the batch itself holds numbers that are not finite",
    "label": "labels: got 0 to 5|Target 5 is out of bounds",
    "first label": "labels: got 0 to 9|Target 9 is out of bounds",
    "collate": "items do not stack",
    "before the model": "no such column",
    "after the model": "the loss has a wrong sign",
    "memory": "does not fit into the device's memory with a batch of 8 samples",
    "exit": "the step has had enough",
    "interrupt": "the step was interrupted",
    "dies": "process 1 of 2 .* is gone",
    "killed": "process 1 of 2 .* is gone",
    "evaluation": "evaluation is not written yet",
    "prediction": "prediction is not written yet",
    "metric": "this metric counts nothing",
    "loss": "the loss divides by zero",
    "update": "the optimizer jams",
    "disk": "No space left on device",
    "find_lr": "the loss has a wrong sign",
    "ends before": "process 1 of 2 .* is gone",
    "another call": "do not call the same: 'fit' on process 0, 'evaluate' on process 1",
    "epochs": "epochs: .* 2 on process 0, 3 on process 1",
    "rate": "lr: .* 0.2 on process 0, 0.1 on process 1",
    "accumulate": "accumulate: .* 1 on process 0, 2 on process 1",
    "callbacks": "callbacks: .*'EarlyStopping' on process 1|callbacks: .* 0 on process 0, 1 on process 1",
    "another model": "model: .* on process 0, .* on process 1",
    "batch size": "train_data: .* on process 0, .* on process 1",
    "length": "train_data: .* on process 0, .* on process 1",
    "no validation": "val_data: .* on process 0, None on process 1",
    "too few": "train_data: it has 1 samples, fewer than the 2 processes",
    "stream": "the processes read different batches",
    "unused parameters": r"does not depend on 3\.weight.*find_unused_parameters",
    "closures": "LBFGS computes loss and gradients several times",
} | {hook: "the callback is broken" for hook in HOOKS if hook not in ("on_interrupt", "on_resume")}


# Found before the first step, by all processes, which may go on.
AGREED = (
    *("epochs", "rate", "accumulate", "callbacks", "length", "stream", "closures"),
    *("batch size", "no validation", "too few"),
)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in AGREED])
def test_what_fails_on_one_process_ends_all_and_is_named(fault, tmp_path):
    ended = launch(2, run, fault, str(tmp_path), seconds=60)
    assert max(one.seconds for one in ended) < MOST_SECONDS
    for rank, one in enumerate(ended):
        if rank == 1 and fault in ("dies", "killed", "ends before"):
            continue
        assert one.status not in (0, -signal.SIGKILL)
        assert re.search(FAULTS[fault], one.output), f"{FAULTS[fault]!r} is not in:\n{one.output}"


def several_faults(rank: int, folder: str) -> dict[str, str]:
    messages = {}
    for fault in AGREED:
        try:
            run(rank, fault, folder)
        except Exception as error:  # noqa: PERF203
            messages[fault] = f"{type(error).__name__}: {error}"
    return messages


def test_what_the_processes_were_given_otherwise_is_an_error_on_all_before_the_first_step(tmp_path):
    for messages in values(launch(2, several_faults, str(tmp_path))):
        for fault in AGREED:
            assert re.match(f"ValueError: .*({FAULTS[fault]})", messages[fault]), messages[fault]

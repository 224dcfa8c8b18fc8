"""The training loops that `gpu.py` measures: one written by hand, mxtorch's and those of its peers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mxtorch import ScheduledOptim, Trainer, model_zoo

RATE = 1e-4  # small: nothing diverges on random pictures


@dataclass(frozen=True)
class Setting:
    """A model with the batch it is measured at and its pictures' size in pixels."""

    name: str
    batch: int
    size: int


class Clock:
    """Hands on the batches of `data`; times the steps after the first `warm_up`.

    The device is waited for when the first timed batch and when the last one have come, so it sees the same part of
    every contender's loop, the wait for a loader included.
    """

    def __init__(self, data: Any, warm_up: int) -> None:
        self.data, self.warm_up = data, warm_up
        self.started = self.ended = 0.0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for step, batch in enumerate(self.data):
            if step == self.warm_up:
                self.started = now()
            if step == len(self) - 1:
                self.ended = now()
            yield batch

    @property
    def seconds_per_step(self) -> float:
        """The mean over the timed steps."""
        return (self.ended - self.started) / (len(self) - 1 - self.warm_up)


def now() -> float:
    """The time in seconds, once the device has done what is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, fused=next(net.parameters()).is_cuda)


def run_bare(net: nn.Module, data: Any, device: torch.device) -> None:
    """The loop written by hand."""
    optimizer, loss = _optimizer(net), nn.CrossEntropyLoss()
    net.train()
    for host_images, host_labels in data:
        images = host_images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = host_labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(net(images), labels)
        value.backward()
        optimizer.step()


def make_trainer(net: nn.Module, device: torch.device, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """A trainer with the settings of the bare loop."""
    return kind(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(_optimizer(net)),
        device=device,
        precision="bf16",
        channels_last=True,
        progress=False,
        **options,
    )


def run_mxtorch(net: nn.Module, data: Any, device: torch.device) -> None:
    """`fit` with loss, one-cycle schedule and TensorBoard."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(net, device, log_dir=folder)
        trainer.fit(data, lr=RATE, schedule="one_cycle")
        trainer.close()


def run_accelerate(net: nn.Module, data: Any, device: torch.device) -> None:
    """Hugging Face Accelerate, with the loop of its documentation."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=device.type == "cpu")
    loss = nn.CrossEntropyLoss()
    prepared, optimizer = accelerator.prepare(net, _optimizer(net))
    prepared.train()
    for host_images, host_labels in data:
        images = host_images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = host_labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        accelerator.backward(loss(prepared(images), labels))
        optimizer.step()


def run_lightning(net: nn.Module, data: Any, device: torch.device) -> None:
    """Lightning's Trainer, all extras off."""
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = net, nn.CrossEntropyLoss()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images = batch[0].to(memory_format=torch.channels_last)
            return self.loss(self.net(images), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.net)

    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data)


CONTENDERS: dict[str, tuple[str, Callable[[nn.Module, Any, torch.device], None]]] = {
    "bare": ("", run_bare),
    "mxtorch": ("", run_mxtorch),
    "accelerate": ("accelerate", run_accelerate),
    "lightning": ("pytorch_lightning", run_lightning),
}


def build(setting: Setting, device: torch.device) -> nn.Module:
    """The network on the device, in channels-last."""
    torch.manual_seed(0)
    return model_zoo.create(setting.name).to(device, memory_format=torch.channels_last)


def synthetic(setting: Setting, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch that lies on the device."""
    images = torch.randn(setting.batch, 3, setting.size, setting.size, device=device)
    return images.to(memory_format=torch.channels_last), torch.randint(1000, (setting.batch,), device=device)

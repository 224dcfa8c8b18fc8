from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mxtorch.integrations import accelerate
from mxtorch.integrations.accelerate import find_lr


@pytest.fixture(autouse=True)
def _settings_forgotten():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def prepare(task, accelerator, optimizer=None, shuffle=False):
    network = task.network()
    optimizer = (optimizer or task.optimizer)(network)
    task.seed()
    return accelerator.prepare(network, optimizer, task.train_loader(shuffle), task.val_loader())


def train(task, accelerator, parts):
    network, optimizer, loader, _ = parts
    network.train()
    for _ in range(2):
        for inputs, targets in loader:
            with accelerator.accumulate(network):
                accelerator.backward(task.loss(network(inputs), targets))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()


def test_it_finds_what_a_trainer_finds(task):
    accelerator = Accelerator(cpu=True)
    parts = prepare(task, accelerator)
    task.seed()
    task.check(find_lr(accelerator, *parts, loss=task.loss, **task.options), task.expected())


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}])
@pytest.mark.parametrize("kind", ["optimizer", "scheduled"])
def test_no_trace(cnn, numbers_of, same, settings, kind):
    numbers = []
    for searches in (False, True):
        accelerator = Accelerator(cpu=True, **settings)
        parts = prepare(cnn, accelerator, getattr(cnn, kind), shuffle=True)
        if searches:
            options = {"num_steps": 30, "training_steps": 20, "clip_grad_norm": 0.5, "progress": False}
            assert find_lr(accelerator, *parts, loss=cnn.loss, **options).trials
        train(cnn, accelerator, parts)
        numbers.append(numbers_of(parts[0]))
        accelerator.free_memory()
    assert same(*numbers)


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, numbers_of, same):
    numbers = []
    for kind in ("optimizer", "scheduled"):
        accelerator = Accelerator(cpu=True)
        parts = prepare(cnn, accelerator, getattr(cnn, kind), shuffle=True)
        if kind == "optimizer":
            scheduler = torch.optim.lr_scheduler.LambdaLR(parts[1].optimizer, cnn.schedule)
            step = parts[1].step
            parts[1].step = lambda step=step, scheduler=scheduler: (step(), scheduler.step())
        train(cnn, accelerator, parts)
        numbers.append(numbers_of(parts[0]))
    assert same(*numbers)


def test_what_is_refused(cnn, monkeypatch):
    accelerator = Accelerator(cpu=True)
    parts = prepare(cnn, accelerator)
    with pytest.raises(TypeError, match="give an instance"):
        find_lr(accelerator, *parts, loss=type(cnn.loss))
    with pytest.raises(ValueError, match="clip_grad_norm"):
        find_lr(accelerator, *parts, loss=cnn.loss, clip_grad_norm=-1)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="in 2 processes"):
        find_lr(accelerator, *parts, loss=cnn.loss)


def test_the_examples(examples, run_page):
    assert examples(accelerate) > 5
    assert run_page("accelerate")["found"].suggestion > 0

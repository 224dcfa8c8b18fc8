from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    hf = pytest.importorskip("transformers")
    from mxtorch.integrations import transformers
    from mxtorch.integrations.transformers import LearningRateFinder, find_lr

from mxtorch import Trainer


class WithLoss(nn.Module):
    """A network that returns its loss, as those of transformers do."""

    def __init__(self, task):
        super().__init__()
        self.net = task.network()
        self.loss = task.loss

    def forward(self, inputs, labels=None):
        logits = self.net(inputs)
        return {"loss": self.loss(logits, labels), "logits": logits}


@pytest.fixture
def make(tmp_path):
    """Makes a `transformers.Trainer` of 2 epochs, with 4 steps of warm-up."""
    logging.getLogger("transformers").setLevel(logging.ERROR)

    def make_trainer(task, lr=5e-5, optimizer=None, **options):
        options = {"warmup_steps": 4, "max_grad_norm": 0.0, "num_train_epochs": 2} | options
        arguments = hf.TrainingArguments(
            str(tmp_path),
            learning_rate=lr,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=40,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        data, held_out = (
            [{"inputs": one, "labels": label} for one, label in zip(*samples.tensors, strict=True)]
            for samples in (task.data, task.held_out)
        )
        model = WithLoss(task)
        optimizers = (None if optimizer is None else optimizer(model), None)
        trainer = hf.Trainer(model, arguments, train_dataset=data, eval_dataset=held_out, optimizers=optimizers)
        task.seed()
        return trainer

    return make_trainer


def test_it_finds_what_a_trainer_finds(task, make):
    """The batches are those of the same loader, in the order that transformers deals by a seed of its own."""
    found = find_lr(make(task), num_steps=120, progress=False)
    theirs = make(task)
    ours = Trainer(theirs.model, None, theirs.create_optimizer(), device="cpu", progress=False, channels_last=False)
    loaders = theirs.get_train_dataloader(), theirs.get_eval_dataloader()
    task.seed()
    expected = ours.find_lr(*loaders, num_steps=120, training_steps=30, schedule=found.schedule)
    assert found.training_steps == 30
    assert [found.schedule(step) for step in (0, 2, 4, 17, 30)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    task.check(found, expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}, {"bf16": True}])
def test_no_trace_and_the_rate_of_the_callback(cnn, make, numbers_of, same, options):
    """A training after the search is that without; one with the callback is that with its rate."""
    plain = make(cnn, **options)
    plain.train()
    expected = numbers_of(plain.model)

    trainer = make(cnn, **options)
    find_lr(trainer, num_steps=40, progress=False)
    assert trainer.optimizer is None
    assert not trainer.is_in_train
    trainer.train()
    assert same(numbers_of(trainer.model), expected)

    trainer = make(cnn, **options)
    finder = LearningRateFinder(trainer, num_steps=60, progress=False)
    trainer.add_callback(finder)
    trainer.train()
    rate = finder.found.suggestion
    assert trainer.args.learning_rate == rate
    found = numbers_of(trainer.model)
    by_hand = make(cnn, lr=rate, **options)
    by_hand.train()
    assert same(found, numbers_of(by_hand.model))


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, make, numbers_of, same):
    numbers = []
    for kind in ("optimizer", "scheduled"):
        trainer = make(cnn, optimizer=getattr(cnn, kind), lr_scheduler_type="constant")
        if kind == "optimizer":
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, cnn.schedule)
        trainer.train()
        numbers.append(numbers_of(trainer.model))
    assert same(*numbers)


def test_the_schedule_of_a_scheduled_optim(cnn, make):
    trainer = make(cnn, optimizer=cnn.scheduled, lr_scheduler_type="constant")
    found = find_lr(trainer, num_steps=40, progress=False)
    assert found.use == "one_cycle"
    assert trainer.optimizer.schedule is not None


def test_what_is_refused(cnn, make):
    trainer = make(cnn, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch")
    with pytest.raises(ValueError, match="ReduceLROnPlateau, which do not tell"):
        find_lr(trainer, progress=False)
    assert trainer.optimizer is None
    trainer = make(cnn)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match="on 2 devices"):
        find_lr(trainer, progress=False)


def test_the_page(run_page):
    scope = run_page("transformers")
    assert scope["found"].suggestion > 0
    assert scope["finder"].found is not None
    assert transformers.__doc__

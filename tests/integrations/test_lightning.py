from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch")
    from mxtorch.integrations import lightning
    from mxtorch.integrations.lightning import LearningRateFinder, find_lr


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def _silent():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    def __init__(self, task, optimizer=None):
        super().__init__()
        self.net = task.network()
        self.task = task
        self.make_optimizer = optimizer or task.optimizer
        self.seen = 0

    def training_step(self, batch, batch_idx):
        loss = self.task.loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        self.seen += 1
        return {"loss": loss}

    def validation_step(self, batch):
        self.log("val_loss", self.task.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.make_optimizer(self.net)


class DataModule(pl.LightningDataModule):
    def __init__(self, task):
        super().__init__()
        self.task = task

    def train_dataloader(self):
        return self.task.train_loader()

    def val_dataloader(self):
        return self.task.val_loader()


def train(module, *callbacks, **options):
    module.task.seed()
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=list(callbacks), **QUIET, **options)
    trainer.fit(module, module.task.train_loader(shuffle=True), module.task.val_loader())
    return trainer


def test_it_finds_what_a_trainer_finds(task):
    module = Module(task)
    task.seed()
    task.check(find_lr(module, task.train_loader(), task.val_loader(), **task.options), task.expected())


def test_a_data_module_and_options_of_the_trainer(cnn):
    module = Module(cnn)
    cnn.seed()
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "max_epochs": 3}
    found = find_lr(module, datamodule=DataModule(cnn), trainer_options=options, num_steps=60, progress=False)
    assert found.training_steps == 3 * 8
    assert module.seen == 0
    assert module._trainer is None


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_no_trace_and_the_rate_of_the_callback(cnn, numbers_of, same, options):
    """A training after the search is that without; one with the callback is that with its rate."""
    plain = Module(cnn)
    train(plain, **options)
    expected = numbers_of(plain)

    module = Module(cnn)
    cnn.seed()
    find_lr(module, cnn.train_loader(shuffle=True), num_steps=40, training_steps=20, progress=False)
    train(module, **options)
    assert same(numbers_of(module), expected)

    finder = LearningRateFinder(num_steps=60, progress=False)
    module = Module(cnn)
    trainer = train(module, finder, **options)
    rate = finder.found.suggestion
    assert finder.found.training_steps == trainer.global_step
    assert trainer.optimizers[0].param_groups[0]["lr"] == rate
    found = numbers_of(module)
    by_hand = Module(cnn, lambda net: cnn.optimizer(net, rate))
    train(by_hand, **options)
    assert same(found, numbers_of(by_hand))


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, numbers_of, same):
    def with_scheduler(net):
        optimizer = cnn.optimizer(net)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cnn.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    modules = [Module(cnn, cnn.scheduled), Module(cnn, with_scheduler)]
    numbers = []
    for module in modules:
        train(module)
        numbers.append(numbers_of(module))
    assert same(*numbers)
    finders = [LearningRateFinder(num_steps=40, progress=False) for _ in modules]
    numbers = []
    for module, finder in zip([Module(cnn, cnn.scheduled), Module(cnn, with_scheduler)], finders, strict=True):
        train(module, finder)
        numbers.append(numbers_of(module))
    assert finders[0].found.trials == finders[1].found.trials, "both tell their schedule"
    assert same(*numbers)


def test_what_is_refused(cnn):
    def one_cycle(net):
        optimizer = cnn.optimizer(net)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)]

    with pytest.raises(ValueError, match="OneCycleLR, which do not tell"):
        find_lr(Module(cnn, one_cycle), cnn.train_loader(), epochs=1, progress=False)
    assert find_lr(Module(cnn, one_cycle), cnn.train_loader(), schedule="one_cycle", num_steps=40, progress=False)
    by_hand = Module(cnn)
    by_hand.automatic_optimization = False
    with pytest.raises(ValueError, match="steps its optimizers itself"):
        find_lr(by_hand, cnn.train_loader(), epochs=1, progress=False)


def test_the_examples(examples, run_page):
    assert examples(lightning) > 5
    scope = run_page("lightning")
    assert scope["found"].suggestion > 0
    assert scope["finder"].found.suggestion is not None
    assert isinstance(scope["Autoencoder"]().encode, nn.Module)

"""Every tool through its own public API, at its defaults: a fresh network and training data in, a learning rate out."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.lr_bench.tasks import Setup, Task

# Where a tool leaves the range to its user: 100 steps from 1e-7 to 10.
LOWEST, HIGHEST, STEPS = 1e-7, 10.0, 100
Suggestions = dict[str, Any]  # of each use: {"constant": rate, "one_cycle": rate}; None where the tool gives none


def same_for_every_use(rate: float | None) -> Suggestions:
    """Peers know one rate only."""
    usable = rate is not None and math.isfinite(rate) and rate > 0
    return {"constant": rate if usable else None, "one_cycle": rate if usable else None}


def fastai(task: Task, setup: Setup, *, rule: str) -> Suggestions:
    """One rule of `Learner.lr_find(suggest_funcs=...)`."""
    return same_for_every_use(fastai_rules(setup, (rule,))[rule])


def fastai_rules(setup: Setup, rules: Sequence[str]) -> dict[str, float]:
    """Several rules on the curve of one `lr_find`; fastai brings its own rate, the optimizer stays the task's."""
    from fastai.callback import schedule
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    placeholder = setup.optimizer
    accepted = inspect.signature(type(placeholder)).parameters  # AdamW's defaults hold more than it takes
    settings = {name: value for name, value in placeholder.defaults.items() if name in accepted and name != "lr"}

    def make_optimizer(parameters: Any, lr: float, **_: Any) -> OptimWrapper:
        made = OptimWrapper(parameters, type(placeholder), lr=lr, **settings)
        for hook in placeholder._optimizer_step_pre_hooks.values():
            made.opt.register_step_pre_hook(hook)
        return made

    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            DataLoaders(setup.train_loader, setup.val_loader),
            setup.model,
            loss_func=setup.loss,
            opt_func=make_optimizer,
            path=Path(folder),
        )
        with learner.no_bar(), learner.no_logging():
            functions = [getattr(schedule, rule) for rule in rules]
            found = learner.lr_find(suggest_funcs=functions, show_plot=False)
    return dict(zip(rules, map(float, found), strict=True))


def lightning(task: Task, setup: Setup) -> Suggestions:
    """`Tuner.lr_find`, min_lr and max_lr as for the others."""
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = setup.model
            self.learning_rate = 1e-3

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            inputs, targets = batch
            return setup.loss(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            for group in setup.optimizer.param_groups:
                group["lr"] = self.learning_rate
            return setup.optimizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = pytorch_lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1000,
            default_root_dir=folder,
        )
        tuner = pytorch_lightning.tuner.Tuner(trainer)
        found = tuner.lr_find(
            Module(), setup.train_loader, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
        )
        return same_for_every_use(found.suggestion() if found is not None else None)


def torch_lr_finder(task: Task, setup: Setup) -> Suggestions:
    """`LRFinder.range_test`, then `plot(suggest_lr=True)`, which gives the steepest point."""
    import matplotlib.pyplot as plt
    from torch_lr_finder import LRFinder

    for group in setup.optimizer.param_groups:
        group["lr"] = LOWEST
    finder = LRFinder(setup.model, setup.optimizer, setup.loss, device="cpu")
    finder.range_test(setup.train_loader, end_lr=HIGHEST, num_iter=STEPS)
    figure, axes = plt.subplots()
    try:
        found = finder.plot(ax=axes, suggest_lr=True)
    finally:
        plt.close(figure)
    return same_for_every_use(float(found[1]) if isinstance(found, tuple) else None)


def ignite(task: Task, setup: Setup) -> Suggestions:
    """`FastaiLRFinder.lr_suggestion`."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    for group in setup.optimizer.param_groups:
        group["lr"] = LOWEST
    trainer = create_supervised_trainer(setup.model, setup.optimizer, setup.loss)
    finder = FastaiLRFinder()
    with finder.attach(
        trainer,
        {"model": setup.model, "optimizer": setup.optimizer},
        num_iter=STEPS,
        start_lr=LOWEST,
        end_lr=HIGHEST,
    ) as searching:
        searching.run(setup.train_loader)
    return same_for_every_use(float(finder.lr_suggestion()))


PACKAGES = {
    "fastai": "fastai",
    "ignite": "pytorch-ignite",
    "torch-lr-finder": "torch-lr-finder",
    "Lightning": "pytorch-lightning",
}

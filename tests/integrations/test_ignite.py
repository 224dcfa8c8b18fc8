from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("ignite")
from ignite.engine import Engine, Events, create_supervised_trainer

from mxtorch.integrations import ignite
from mxtorch.integrations.ignite import find_lr


def make(task, optimizer=None, **options):
    network = task.network()
    optimizer = (optimizer or task.optimizer)(network)
    trainer = create_supervised_trainer(network, optimizer, task.loss, **options)
    task.seed()
    return trainer, {"model": network, "optimizer": optimizer}


def test_it_finds_what_a_trainer_finds(task):
    trainer, to_save = make(task)
    found = find_lr(trainer, to_save, task.train_loader(), task.val_loader(), loss=task.loss, **task.options)
    task.check(found, task.expected())


@pytest.mark.parametrize("kind", ["optimizer", "scheduled"])
def test_no_trace(cnn, numbers_of, same, kind):
    numbers = []
    for searches in (False, True):
        trainer, to_save = make(cnn, getattr(cnn, kind))
        loader = cnn.train_loader(shuffle=True)
        if searches:
            find_lr(trainer, to_save, loader, loss=cnn.loss, num_steps=30, training_steps=20, progress=False)
            assert trainer.state.iteration == 0
        trainer.run(loader, max_epochs=2)
        numbers.append(numbers_of(to_save["model"]))
    assert same(*numbers)


def test_a_process_function_of_ones_own(cnn, numbers_of, same):
    """It returns a dictionary, keeps an average that only it knows, and one that `to_save` names."""
    numbers = []
    for searches in (False, True):
        network = cnn.network()
        optimizer = cnn.optimizer(network)
        averages = [copy.deepcopy(network) for _ in range(2)]

        def process(engine, batch, network=network, optimizer=optimizer, averages=averages):
            network.train()
            optimizer.zero_grad()
            loss = cnn.loss(network(batch[0]), batch[1]) * (1 + 0 * engine.state.iteration)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for average in averages:
                    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                        mean.lerp_(value, 0.1)
            return {"loss": loss.item()}

        trainer = Engine(process)
        to_save = {"model": network, "optimizer": optimizer, "average": averages[0]}
        cnn.seed()
        if searches:
            found = find_lr(
                trainer,
                to_save,
                cnn.train_loader(),
                output_transform=lambda output: output["loss"],
                evaluate=lambda batch, network=network: cnn.loss(network(batch[0]), batch[1]),
                num_steps=30,
                training_steps=20,
                progress=False,
            )
            assert found.trials
        trainer.run(cnn.train_loader(), max_epochs=1)
        numbers.append([*numbers_of(network), *numbers_of(averages[0]), *numbers_of(averages[1])])
    assert same(*numbers)


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, numbers_of, same):
    numbers = []
    for kind in ("optimizer", "scheduled"):
        trainer, to_save = make(cnn, getattr(cnn, kind))
        if kind == "optimizer":
            scheduler = torch.optim.lr_scheduler.LambdaLR(to_save["optimizer"], cnn.schedule)
            trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine, scheduler=scheduler: scheduler.step())
        trainer.run(cnn.train_loader(shuffle=True), max_epochs=2)
        numbers.append(numbers_of(to_save["model"]))
    assert same(*numbers)


@pytest.mark.parametrize(
    ("trainer", "to_save", "message"),
    [
        (None, {}, "trainer: got None"),
        (Engine(lambda engine, batch: None), {"model": None}, "its 'model' is None"),
        (Engine(lambda engine, batch: None), {"model": nn.Linear(2, 2)}, "its 'optimizer' is None"),
    ],
)
def test_what_is_refused(trainer, to_save, message):
    with pytest.raises(TypeError, match=message):
        find_lr(trainer, to_save, [1])


def test_the_examples(examples, run_page):
    assert examples(ignite) > 5
    assert run_page("ignite")["found"].suggestion > 0

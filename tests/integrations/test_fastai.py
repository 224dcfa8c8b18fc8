from __future__ import annotations

import functools
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("fastai")
    import fastai.callback.schedule  # gives learners their fit_one_cycle
    from fastai.callback.mixup import MixUp
    from fastai.callback.progress import CSVLogger
    from fastai.callback.training import GradientClip
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as FastaiLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import SGD, Adam, OptimWrapper

    from mxtorch.integrations import fastai as integration
    from mxtorch.integrations.fastai import FIT_ONE_CYCLE, find_lr

ADAMW = functools.partial(OptimWrapper, opt=torch.optim.AdamW)


def learner(task, optimizer=ADAMW, *, shuffle=False, callbacks=(), loss=None):
    task.seed()  # fastai's loaders draw the seed of their order when they are made
    if shuffle:
        samples = list(zip(*task.data.tensors, strict=True))
        loaders = DataLoaders(FastaiLoader(samples, bs=16, shuffle=True), FastaiLoader(samples[:120], bs=40))
    else:
        loaders = DataLoaders(task.train_loader(), task.val_loader())
    options = {"loss_func": loss or task.loss, "opt_func": optimizer, "cbs": list(callbacks)}
    network = task.network()
    task.seed()
    return Learner(loaders, network, **options)


def fit(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)


def test_it_finds_what_a_trainer_finds(task):
    learn = learner(task)
    learn.wd = 0.01  # torch's default for AdamW
    task.seed()
    task.check(find_lr(learn, **task.options), task.expected(schedule=FIT_ONE_CYCLE))


def test_the_schedule_is_that_of_fit_one_cycle(cnn):
    learn = learner(cnn)
    fit(learn)
    rates = [rate / 1e-2 for rate in learn.recorder.lrs]
    schedule = FIT_ONE_CYCLE.for_steps(len(rates))
    assert [schedule(step) for step in range(len(rates))] == pytest.approx(rates, abs=0.15)


CALLBACKS = {
    "none": list,
    "those that change a step": lambda: [MixUp(), GradientClip(0.1)],
    "those that write": lambda: [CSVLogger()],
}


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("optimizer", [Adam, SGD, ADAMW], ids=["Adam", "SGD", "AdamW of torch"])
def test_no_trace(cnn, numbers_of, same, optimizer, callbacks, tmp_path):
    numbers = []
    for searches in (False, True):
        made = CALLBACKS[callbacks]()
        learn = learner(cnn, optimizer, shuffle=True, callbacks=made, loss=CrossEntropyLossFlat())
        learn.path = tmp_path / str(searches)
        learn.path.mkdir()
        if searches:
            found = find_lr(learn, num_steps=40, training_steps=30, progress=False)
            assert learn.opt is None
            assert len(found.trials) >= 6
            assert not list(learn.path.iterdir())
        fit(learn)
        numbers.append(numbers_of(learn.model))
    assert same(*numbers)


def test_a_learner_that_has_trained_goes_on(cnn, numbers_of, same):
    numbers = []
    for searches in (False, True):
        learn = learner(cnn, Adam, shuffle=True)
        fit(learn)
        if searches:
            rates = [hyper["lr"] for hyper in learn.opt.hypers]
            find_lr(learn, num_steps=40, training_steps=30, progress=False)
            assert [hyper["lr"] for hyper in learn.opt.hypers] == rates
            assert len(learn.recorder.losses) == 30
        fit(learn)
        numbers.append(numbers_of(learn.model))
    assert same(*numbers)


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, numbers_of, same):
    from mxtorch import ScheduledOptim

    def wrapped(parameters, lr, **options):
        return ScheduledOptim(torch.optim.AdamW(parameters, lr=lr))

    numbers = []
    for opt in (torch.optim.AdamW, wrapped):
        learn = learner(cnn, functools.partial(OptimWrapper, opt=opt), shuffle=True)
        fit(learn)
        numbers.append(numbers_of(learn.model))
    assert same(*numbers)


def test_what_is_refused():
    with pytest.raises(TypeError, match="give a fastai Learner"):
        find_lr(None)


def test_the_examples(examples, run_page):
    assert examples(integration) > 3
    assert run_page("fastai")["found"].suggestion > 0
    assert fastai.callback.schedule

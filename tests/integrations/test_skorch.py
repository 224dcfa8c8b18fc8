from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("skorch")
    from skorch import NeuralNet, NeuralNetClassifier
    from skorch.callbacks import GradientNormClipping, LRScheduler
    from skorch.helper import predefined_split

    from mxtorch.integrations import skorch
    from mxtorch.integrations.skorch import find_lr

from mxtorch import ScheduledOptim, schedules

OPTIONS = {"num_steps": 40, "progress": False}


def make(task, optimizer=torch.optim.AdamW, lr=1e-3, **options):
    options = {"max_epochs": 2, "iterator_train__shuffle": True, "verbose": 0} | options
    split = predefined_split(task.held_out)
    net = NeuralNetClassifier(
        task.network,
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        lr=lr,
        batch_size=16,
        train_split=split,
        iterator_valid__batch_size=40,
        **options,
    )
    task.seed()
    return net


class Seeded(NeuralNetClassifier):
    """Draws the random numbers of its first step as the other libraries do, after it has made its module."""

    def initialize(self):
        super().initialize()
        torch.manual_seed(5)
        return self


def test_it_finds_what_a_trainer_finds(task):
    net = Seeded(**{**make(task).get_params(deep=False), "iterator_train__shuffle": False})
    net.set_params(iterator_train__shuffle=False)
    found = find_lr(net, task.data, None, **task.options)
    task.check(found, task.expected())


CALLBACKS = {"none": [], "clipping": [GradientNormClipping(0.1)]}


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("warm", [False, True])
def test_no_trace(cnn, numbers_of, same, warm, callbacks):
    """Also where the search goes on from a module that is there."""
    numbers = []
    for searches in (False, True):
        net = make(cnn, warm_start=warm, callbacks=CALLBACKS[callbacks])
        if warm:
            net.fit(cnn.data, None)
        if searches:
            assert find_lr(net, cnn.data, None, **OPTIONS).training_steps == 30
            assert net.initialized_ is warm
        net.fit(cnn.data, None)
        numbers.append(numbers_of(net.module_))
    assert same(*numbers)


def scheduled(parameters, lr):
    return ScheduledOptim(torch.optim.AdamW(parameters, lr=lr), schedules.OneCycle(30, cycle_momentum=False))


def test_scheduled_optim_trains_as_the_optimizer_it_wraps(cnn, numbers_of, same):
    callback = LRScheduler(
        torch.optim.lr_scheduler.LambdaLR, step_every="batch", lr_lambda=schedules.OneCycle(30, cycle_momentum=False)
    )
    numbers = []
    for options in ({"optimizer": scheduled}, {"callbacks": [callback]}):
        net = make(cnn, **options)
        net.fit(cnn.data, None)
        numbers.append(numbers_of(net.module_))
    assert same(*numbers)
    assert find_lr(make(cnn, scheduled), cnn.data, None, **OPTIONS).use == "one_cycle"


def test_what_is_refused(cnn):
    with pytest.raises(TypeError, match=r"give a skorch\.NeuralNet"):
        find_lr(nn.Linear(2, 2), None)

    class Two(NeuralNet):
        def initialize_optimizer(self, *arguments, **options):
            super().initialize_optimizer(*arguments, **options)
            self.second_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
            return self

    net = Two(cnn.network, criterion=nn.CrossEntropyLoss, train_split=None)
    with pytest.raises(ValueError, match="it has 2 optimizers"):
        find_lr(net, cnn.data, None)


def test_the_examples(examples, run_page):
    assert examples(skorch) > 5
    assert run_page("skorch")["found"].suggestion > 0

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from mxtorch import Trainer
from mxtorch._checks import shortened

BAD_DATA = {
    "empty list": ([], "no batches"),
    "a generator": ((batch for batch in [1]), "only once"),
    "not iterable": (3, "give a DataLoader"),
    "a data set": (TensorDataset(torch.ones(3, 8)), "DataLoader"),
    "empty iterable": (iter, "give a DataLoader"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(net, case, make):
    data, message = BAD_DATA[case]
    trainer = make(net)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.find_lr(data)
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.fit(data, epochs=2)


def test_bad_models_and_optimizers(net, make):
    sgd = torch.optim.SGD
    with pytest.raises(ValueError, match="without trainable parameters"):
        make(net.requires_grad_(False))
    net.requires_grad_(True)
    with pytest.raises(ValueError, match="holds none of the model's"):
        Trainer(net, None, sgd(nn.Linear(2, 2).parameters(), lr=0.1))
    with pytest.warns(UserWarning, match=r"4\.weight, 4\.bias"):
        Trainer(net, None, sgd(net[:4].parameters(), lr=0.1), device="cpu")
    with pytest.raises(TypeError, match="model: got"):
        Trainer(len, None, sgd(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="optimizer: got"):
        Trainer(net, None, "sgd")
    with pytest.raises(ValueError, match="no shape yet"):
        make(nn.Sequential(nn.Linear(8, 4), nn.LazyLinear(2)))


def test_a_warning_names_the_line_of_the_user(net, make, loader):
    """Where the trainer is made, and where it is trained."""
    optimizer = torch.optim.SGD(net[:4].parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="leaves out trainable parameters") as warned:
        trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    net.add_module("further", nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"further\.weight, further\.bias") as warned_later:
        trainer.fit(loader)
    assert {warned[0].filename, warned_later[0].filename} == {__file__}


@pytest.mark.parametrize(("count", "shown"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more")])
def test_shortened_names(count, shown):
    assert shortened(range(count), 3) == shown

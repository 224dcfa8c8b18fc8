from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from mxtorch import Trainer

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

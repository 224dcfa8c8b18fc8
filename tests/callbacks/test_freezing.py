from __future__ import annotations

import numpy as np
import pytest
import torch

from mxtorch import Trainer
from mxtorch.callbacks import Freeze, Unfreeze


def changes(net, trainer, loader, epochs):
    from mxtorch import Callback

    seen = []

    class See(Callback):
        def on_epoch_end(self, trainer):
            seen.append((net[0].weight.detach().clone(), net[1].training))

    trainer.callbacks.callbacks.append(See())
    start = net[0].weight.detach().clone()
    trainer.fit(loader, epochs=epochs)
    before = [start, *(weight for weight, _ in seen)]
    return [not torch.equal(before[n], before[n + 1]) for n in range(epochs)], [mode for _, mode in seen]


def test_unfreeze(net, loader, make):
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    trainer = make(net, callbacks=[Unfreeze(["0", net[1]], epoch=3)])
    assert changes(net, trainer, loader, 4) == ([False, False, True, True], [False, False, True, True])


def test_freeze(net, loader, make):
    trainer = make(net, callbacks=[Freeze(["0", "1"], epoch=np.int64(2))])
    assert changes(net, trainer, loader, 3) == ([True, False, False], [True, False, False])


def test_layers_that_can_not_be_unfrozen(net, loader, make):
    with pytest.raises(ValueError, match="layers: got '9'"):
        make(net, callbacks=[Freeze("9", epoch=1)]).fit(loader)
    with pytest.raises(ValueError, match="layers: got none"):
        Freeze([], epoch=1)
    with pytest.raises(ValueError, match="layers: got a Linear that is not in the model"):
        make(net, callbacks=[Freeze(torch.nn.Linear(1, 1), epoch=1)]).fit(loader)
    with pytest.raises(TypeError, match="layers: got 3"):
        make(net, callbacks=[Freeze([3], epoch=1)]).fit(loader)
    with pytest.raises(TypeError, match=r"epoch: got 1\.5"):
        Freeze("0", epoch=1.5)
    with pytest.raises(ValueError, match="epoch: got 0"):
        Freeze("0", epoch=0)
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    trainer = Trainer(
        net, torch.nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, callbacks=[Unfreeze("0", epoch=2)]
    )
    with pytest.raises(ValueError, match="optimizer: got one without 'weight'"):
        trainer.fit(loader)

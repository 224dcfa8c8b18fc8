from __future__ import annotations

import torch
from torch import nn

from mxtorch import Trainer


def test_a_trainer_is_shown_as_a_table(make, net, loader):
    trainer = make(net)
    page = trainer._repr_html_()
    for words in ("Sequential, 210 parameters", "CrossEntropyLoss", "SGD", "0.1", "cpu, fp32", "0 epochs, 0 steps"):
        assert words in page, page
    net[0].requires_grad_(False)
    trainer.fit(loader, epochs=2, schedule="one_cycle")
    page = trainer._repr_html_()
    assert "66 of them trained" in page
    assert "OneCycle(" in page
    assert "2 epochs, 16 steps" in page


def test_rates_by_the_name_of_their_group_and_no_markup_of_others():
    class Loss(nn.Module):
        def forward(self, outputs, targets):
            return (outputs - targets).square().mean()

        def extra_repr(self):
            return "<b>"

    net = nn.Linear(2, 2)
    groups = [{"params": [net.weight], "name": "body", "lr": 0.1}, {"params": [net.bias], "name": "head", "lr": 0.5}]
    page = Trainer(net, Loss(), torch.optim.SGD(groups), progress=False)._repr_html_()
    assert "body 0.1, head 0.5" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page

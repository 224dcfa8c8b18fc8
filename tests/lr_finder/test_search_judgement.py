"""What the short trainings of a search are judged by: held-out samples of any kind, or the losses of training."""

from __future__ import annotations

import pytest
import torch
from searched import make_network, make_own
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from mxtorch import Trainer
from mxtorch.training.supervised import StepOutput


class Own(Trainer):
    """A training step of one's own, and no evaluation step."""

    def training_step(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.model(inputs), labels)


def test_a_training_step_of_ones_own_alone_is_judged_by_itself(make, train_data, val_data):
    own = make_own(Own, make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert own.note == ""
    assert "training losses" not in own.advice
    usual = make(make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert own.trials == usual.trials, "it computes what the usual steps compute"


def test_a_training_step_that_needs_gradients_is_judged_by_training_losses(train_data, val_data):
    class Penalised(Own):
        def training_step(self, batch):
            loss = super().training_step(batch)
            first = self.model[0].weight
            return loss + torch.autograd.grad(loss, first, create_graph=True)[0].square().sum()

    found = make_own(Penalised, make_network()).find_lr(train_data, val_data, epochs=2, num_steps=300)
    assert "training_step can't be run without gradients (RuntimeError" in found.note
    assert found.note in str(found)
    assert found.status == "guess"
    assert "only training losses" in found.advice
    assert found.suggestion is not None


def test_a_step_that_runs_out_of_memory_is_no_step_that_needs_gradients(train_data, val_data):
    class Full(Own):
        def training_step(self, batch):
            if not torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(batch)

    with pytest.raises(torch.OutOfMemoryError, match="batch of 32 samples"):
        make_own(Full, make_network()).find_lr(train_data, val_data, num_steps=100)


def test_an_evaluation_step_for_metrics_alone(network, train_data, val_data):
    class ForMetrics(Trainer):
        def evaluation_step(self, batch):
            return StepOutput(None, self.model(batch[0]), batch[1])

    found = make_own(ForMetrics, network, nn.CrossEntropyLoss()).find_lr(train_data, val_data, num_steps=100)
    assert "evaluation_step gives no loss" in found.note
    assert "only training losses" in found.advice


def test_an_evaluation_step_whose_outputs_do_not_suit_the_loss(network, train_data, val_data):
    class Deciding(Trainer):
        def evaluation_step(self, batch):
            outputs = self.model(batch[0])
            return StepOutput(self.loss(outputs, batch[1]), outputs.argmax(1), batch[1])

    found = make_own(Deciding, network, nn.CrossEntropyLoss()).find_lr(train_data, val_data, epochs=8, num_steps=1800)
    assert found.status == "ok"


def sorted_batches(blobs):
    order = blobs.tensors[1].argsort()
    return list(zip(*[tensor[order].split(16) for tensor in blobs.tensors], strict=True))


class Stream(IterableDataset):
    """Samples in their order, without a length."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter([self.samples[index] for index in range(len(self.samples))])


def test_validation_data_of_any_kind_that_are_sorted_by_class(make, blobs, train_data):
    """Batches of one class, through batch normalisation by their own statistics, would say nothing."""
    order = blobs.tensors[1].argsort()
    by_class = Subset(blobs, order.tolist())
    kinds = [
        DataLoader(by_class, 16),
        DataLoader(Stream(by_class), 16),
        sorted_batches(blobs),
        DataLoader(by_class, batch_sampler=[range(start, start + 16) for start in range(0, 512, 16)]),
    ]
    for judge in kinds:
        found = make(make_network()).find_lr(train_data, judge, epochs=2, num_steps=600)
        assert found.status == "ok"
        assert found.trials[-1].loss < 0.6 * found.trials[-1].loss_before
        assert 1e-3 < found.suggestion < 1


def test_dictionaries(make, blobs):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make_network()

        def forward(self, pixels):
            return self.layers(pixels)

    batches = [{"pixels": inputs, "labels": labels} for inputs, labels in DataLoader(blobs, 16)]
    found = make(Named()).find_lr(batches, batches, epochs=2, num_steps=150)
    assert found.note == ""
    assert found.trials[-1].loss < found.trials[-1].loss_before


def test_batches_that_cant_be_mixed(make, network, blobs, train_data):
    judge = [(inputs, labels, ["name"] * len(labels)) for inputs, labels in DataLoader(blobs, 16)]

    class FirstTwo(Trainer):
        def evaluation_step(self, batch):
            return super().evaluation_step(batch[:2])

    normalised = make_own(FirstTwo, network, nn.CrossEntropyLoss())
    assert "training data are held out" in normalised.find_lr(train_data, judge, num_steps=60).note
    plain = make_own(FirstTwo, nn.Linear(8, 4), nn.CrossEntropyLoss())
    assert "whole ones from all over are judged" in plain.find_lr(train_data, judge, num_steps=60).note


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_batch_normalisation_and_a_validation_set_of_an_odd_size(make, network, blobs, train_data, method, count):
    few = DataLoader(Subset(blobs, range(count)), 32)
    judges = [few, [next(iter(few)), next(iter(DataLoader(blobs, 1)))]]
    for judge in judges:
        found = make(network).find_lr(train_data, judge, method=method, num_steps=60)
        assert found.note == ""
        assert found.held_out or "only training losses" not in found.advice


@pytest.mark.parametrize("method", ["trials", "sweep"])
def test_loaders_too_short_to_hold_out_from(make, network, blobs, method):
    found = make(network).find_lr(DataLoader(blobs, 512), method=method, num_steps=60)
    assert "give val_data" in found.note
    assert found.held_out == ()
    assert found.status == "guess"


def test_a_short_training_is_judged_by_statistics_of_the_batches_and_a_whole_one_by_those_it_kept(make, blobs):
    """The loss before training is that of the validation samples, without dropout, with batch statistics."""
    network, judge = make_network(), [blobs.tensors]
    inputs, labels = blobs.tensors
    with torch.no_grad():
        hidden = network[0](inputs)
        normal = nn.functional.batch_norm(hidden, None, None, network[1].weight, network[1].bias, training=True)
        loss = nn.functional.cross_entropy(network[4](normal.relu()), labels)
    found = make(network).find_lr(DataLoader(blobs, 16), judge, epochs=1, num_steps=60)
    assert found.trials[0].loss_before == pytest.approx(float(loss), rel=1e-5)

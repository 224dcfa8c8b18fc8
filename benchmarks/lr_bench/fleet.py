"""Copies of one network, trained side by side on the same batches, each at its own learning rate.

On a GPU a whole step of all copies (batches, augmentation, forward and backward pass, update) is one CUDA graph with a
branch for each copy: small networks then wait neither for Python nor for each other. On a processor the copies take
turns. In both cases the weights of all copies are one tensor [copies, numbers].
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.lr_bench.data import Split
from benchmarks.lr_bench.flat_optimizers import OptimizerSpec

ALIGNMENT = 64  # a parameter begins at a multiple of 256 bytes, as the fast kernels want it
VALIDATION_BATCH = 512

# (outputs, targets) to one loss for each sample.
Losses = Callable[[Tensor, Tensor], Tensor]
# (inputs, targets) of a batch to what the network sees in training.
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class OutOfTimeError(Exception):
    """The time limit came before the end of a training."""


class Fleet:
    """All copies, the data on their device, and a way to train them from the start again and again.

    Args:
        network: The network that every copy starts as.
        samples: What is learnt.
        losses: One loss for each sample.
        optimizer: What updates the weights.
        batch_size: Samples a step; fewer where there are fewer.
        copies: How many rates are trained side by side.
        most_steps: The longest training.
        device: Where.
        augment: What is done to a training batch.
        clip: The largest norm of the gradient.
        bfloat16: Run forward passes under autocast.
        out_of_time: Asked every 100 steps; True ends the training with `OutOfTimeError`.
    """

    def __init__(
        self,
        network: nn.Module,
        samples: Split,
        losses: Losses,
        optimizer: OptimizerSpec,
        batch_size: int,
        *,
        copies: int,
        most_steps: int,
        device: torch.device,
        augment: Augment | None = None,
        clip: float | None = None,
        bfloat16: bool = False,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> None:
        self.losses, self.augment, self.clip, self.bfloat16 = losses, augment, clip, bfloat16
        self.device, self.copies, self.out_of_time = device, copies, out_of_time
        self.samples = Split(*(part.to(device) for part in samples))
        self.batch_size = min(batch_size, len(samples.train_inputs))
        network = network.to(device)
        parameters = list(network.parameters())
        self.parameter_count = sum(parameter.numel() for parameter in parameters)
        starts, width = [], 0
        for parameter in parameters:
            starts.append(width)
            width += math.ceil(parameter.numel() / ALIGNMENT) * ALIGNMENT
        spans = [slice(a, a + parameter.numel()) for a, parameter in zip(starts, parameters, strict=True)]
        self.first_weights = torch.zeros(width, device=device)
        for span, parameter in zip(spans, parameters, strict=True):
            self.first_weights[span] = parameter.detach().flatten()
        self.first_buffers = [buffer.clone() for buffer in network.buffers()]

        self.weights = torch.zeros(copies, width, device=device)
        self.gradients = torch.zeros_like(self.weights)
        self.models = [copy.deepcopy(network) for _ in range(copies)]
        self.parameters = [list(model.parameters()) for model in self.models]
        self.gradient_views = []
        for index, own in enumerate(self.parameters):
            for span, parameter in zip(spans, own, strict=True):
                parameter.data = self.weights[index, span].view_as(parameter)
            self.gradient_views.append(
                [self.gradients[index, span].view_as(parameter) for span, parameter in zip(spans, own, strict=True)]
            )
        self.optimizer = optimizer.for_copies([parameter.shape for parameter in parameters], spans, self.weights)
        self.rates = torch.zeros(most_steps, copies, device=device)
        self.order = torch.zeros(most_steps, self.batch_size, dtype=torch.int64, device=device)
        self.train_losses = torch.zeros(most_steps, copies, device=device)
        self.step_losses = torch.zeros(copies, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.alive = [True] * copies
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self.streams = [torch.cuda.Stream() for _ in range(copies)]
            self._capture()

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network normalises by the batch."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.models[0].modules())

    def start_again(self, order_seed: int) -> None:
        """Put all copies back to the first weights; the seed decides everything random that follows."""
        self.weights.copy_(self.first_weights.expand_as(self.weights))
        self.gradients.zero_()
        for model in self.models:
            for buffer, first in zip(model.buffers(), self.first_buffers, strict=True):
                buffer.copy_(first)
        self.optimizer.reset()
        self.counter.zero_()
        self.alive = [True] * self.copies
        torch.manual_seed(order_seed)

    def train(
        self,
        rates: Sequence[float],
        multipliers: Sequence[float],
        order_seed: int,
        looks: Collection[int] = (),
        look: Callable[[int], None] = lambda step: None,
        *,
        only_first: bool = False,
    ) -> Tensor:
        """Train all copies from the start; the result is the training loss before each step [steps, copies].

        Args:
            rates: The base rate of each copy.
            multipliers: What the base rate is multiplied by, for each step.
            order_seed: Decides the order of the samples, which is a new one in each epoch.
            looks: After these numbers of steps `look` is called with the number.
            look: See `looks`.
            only_first: The others may be left out where that saves time; their losses mean nothing.
        """
        steps = len(multipliers)
        self.start_again(order_seed)
        if only_first:
            self.alive = [True] + [False] * (self.copies - 1)
        table = torch.tensor(multipliers, dtype=torch.float64)[:, None] * torch.tensor(rates, dtype=torch.float64)
        self.rates[:steps] = table.float().to(self.device)
        self.order[:steps] = batches(len(self.samples.train_inputs), self.batch_size, steps, order_seed).to(self.device)
        for step in range(1, steps + 1):
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
            if step in looks:
                look(step)
            if step % 100 == 0:
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                if self.out_of_time():
                    raise OutOfTimeError
        return self.train_losses[:steps].cpu()

    def loss_of_each(
        self, inputs: Tensor, targets: Tensor, *, batch_statistics: bool = False, only_first: bool = False
    ) -> Tensor:
        """The loss of each sample for each copy in evaluation mode [copies, samples]; NaN for a copy that broke.

        Args:
            inputs: Of all samples.
            targets: Of all samples.
            batch_statistics: Normalise by the samples at hand rather than by running statistics, which stay.
            only_first: The first copy alone.
        """
        result = []
        for index, model in enumerate(self.models[: 1 if only_first else None]):
            if not self.alive[index]:
                result.append(torch.full((len(inputs),), math.nan))
                continue
            with evaluation(model, batch_statistics=batch_statistics), torch.no_grad(), self._autocast():
                parts = [
                    self.losses(model(inputs[a : a + VALIDATION_BATCH]), targets[a : a + VALIDATION_BATCH])
                    for a in range(0, len(inputs), VALIDATION_BATCH)
                ]
            result.append(torch.cat(parts).float())
        return torch.stack([part.to(self.device) for part in result]).cpu()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        # Without its cache, which must not outlive a step inside a graph.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False)

    def _pass(self, index: int, inputs: Tensor, targets: Tensor) -> None:
        with self._autocast():
            loss = self.losses(self.models[index](inputs), targets).mean()
        gradients = torch.autograd.grad(loss, self.parameters[index])
        torch._foreach_copy_(self.gradient_views[index], list(gradients))
        self.step_losses[index] = loss.detach()

    def _step(self) -> None:
        chosen = self.order.index_select(0, self.counter).view(-1)
        inputs = self.samples.train_inputs.index_select(0, chosen)
        targets = self.samples.train_targets.index_select(0, chosen)
        if self.augment is not None:
            inputs, targets = self.augment(inputs, targets)
        if self.device.type == "cuda":
            main = torch.cuda.current_stream()
            for index, stream in enumerate(self.streams):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    self._pass(index, inputs, targets)
            for stream in self.streams:
                main.wait_stream(stream)
        else:
            for index in range(self.copies):
                if self.alive[index]:
                    self._pass(index, inputs, targets)
                    if not math.isfinite(self.step_losses[index].item()):
                        # It costs time and will not come back.
                        self.alive[index] = False
                        self.weights[index] = self.gradients[index] = self.step_losses[index] = math.nan
        if self.clip is not None:
            norms = self.gradients.norm(dim=1, keepdim=True)
            self.gradients.mul_((self.clip / (norms + 1e-6)).clamp(max=1.0))
        self.optimizer.step(self.weights, self.gradients, self.rates.index_select(0, self.counter).view(-1, 1))
        self.train_losses.index_copy_(0, self.counter, self.step_losses[None])
        self.counter += 1

    def _capture(self) -> None:
        """Record a step as a graph; the steps that warm up don't count, as every training starts again."""
        self.start_again(0)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        self.counter.zero_()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph


def batches(count: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Indices [steps, batch_size]: pass after pass in new order, the incomplete batch at the end left out."""
    generator = torch.Generator().manual_seed(seed)
    per_pass = count // batch_size
    passes = [
        torch.randperm(count, generator=generator)[: per_pass * batch_size] for _ in range(math.ceil(steps / per_pass))
    ]
    return torch.cat(passes).view(-1, batch_size)[:steps]


@contextlib.contextmanager
def evaluation(model: nn.Module, *, batch_statistics: bool) -> Iterator[None]:
    """Evaluation mode; on request batch normalisation keeps using the batch, and leaves its running statistics."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    if batch_statistics:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        model.train()

"""Optimizers whose state is a few tensors [copies, numbers]: one update serves many copies of a network at once.

Every copy has a rate of its own. The formulas are those of `torch.optim` (the tests compare them step by step). No
update waits for the device, so that a CUDA graph can hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# The kinds whose step does not grow with the gradient; people start them at 1e-3, the others at 1e-2.
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Muon")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by its name in `torch.optim`, and its settings except the rate.

    `Muon` takes the weight matrices of the hidden layers, and AdamW at the same rate takes the rest, with Muon's
    update scaled to AdamW's size (`match_rms_adamw`, arXiv 2502.16982).
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    def default_rate(self, use: str) -> float:
        """What people take without a finder: 1e-3 (1e-2 for the SGD kind), three times that as one-cycle's peak."""
        return (1e-3 if self.kind in ADAPTIVE else 1e-2) * (3 if use == "one_cycle" else 1)

    def for_torch(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of `torch.optim`; the rate is a placeholder. Not for Muon, which is two optimizers there."""
        return getattr(torch.optim, self.kind)(parameters, lr=1e-3, **self.settings)

    def for_copies(self, shapes: Sequence[torch.Size], spans: Sequence[slice], like: Tensor) -> FlatOptimizer:
        """The optimizer of `like` [copies, numbers], which holds parameters of these shapes at these columns."""
        return FlatOptimizer(self, shapes, spans, like)


class FlatOptimizer:
    """`step` updates the weights of all copies in place; `reset` forgets everything."""

    def __init__(self, spec: OptimizerSpec, shapes: Sequence[torch.Size], spans: Sequence[slice], like: Tensor) -> None:
        self.settings = spec.settings
        self.decay = spec.settings.get("weight_decay", 1e-2 if spec.kind == "AdamW" else 0.0)
        self.update: Callable[[Tensor, Tensor, Tensor], None] = getattr(self, f"_{spec.kind.lower()}")
        self.state = [torch.zeros_like(like) for _ in range(3 if spec.kind == "Muon" else 2)]
        self.count = torch.zeros((), dtype=torch.float64, device=like.device)
        self.mu_product = torch.ones((), dtype=torch.float64, device=like.device)
        if spec.kind == "Muon":
            hidden = [(span, shape) for span, shape in zip(spans, shapes, strict=True) if len(shape) == 2]
            self.matrices = hidden[1:-1]  # the first is an embedding, the last the head

    def reset(self) -> None:
        """As before the first step."""
        for tensor in (*self.state, self.count):
            tensor.zero_()
        self.mu_product.fill_(1.0)

    def step(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """One update; `rates` is [copies, 1]. The gradients are overwritten."""
        self.count += 1
        self.update(weights, gradients, rates)

    def _sgd(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        momentum = self.settings.get("momentum", 0.0)
        if self.decay:
            gradients.add_(weights, alpha=self.decay)
        if momentum:
            buffer = self.state[0].mul_(momentum).add_(gradients)
            if self.settings.get("nesterov"):
                gradients.add_(buffer, alpha=momentum)
            else:
                gradients.copy_(buffer)
        weights.sub_(gradients.mul_(rates))

    def _adam(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        if self.decay:
            gradients.add_(weights, alpha=self.decay)
        self._adam_step(weights, gradients, rates)

    def _adamw(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        weights.mul_(1 - rates * self.decay)
        self._adam_step(weights, gradients, rates)

    def _adam_step(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        beta1, beta2 = self.settings.get("betas", (0.9, 0.999))
        mean, square = self.state[:2]
        mean.lerp_(gradients, 1 - beta1)
        square.mul_(beta2).add_(gradients.square_(), alpha=1 - beta2)
        correction1, correction2 = (1 - beta**self.count for beta in (beta1, beta2))
        size = square.sqrt().div_(correction2.sqrt()).add_(1e-8)
        weights.sub_((mean / size).mul_((rates / correction1).float()))

    def _rmsprop(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        if self.decay:
            gradients.add_(weights, alpha=self.decay)
        square, buffer = self.state
        square.mul_(0.99).addcmul_(gradients, gradients, value=0.01)
        gradients.div_(square.sqrt().add_(1e-8))
        momentum = self.settings.get("momentum", 0.0)
        if momentum:
            gradients.copy_(buffer.mul_(momentum).add_(gradients))
        weights.sub_(gradients.mul_(rates))

    def _adagrad(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        if self.decay:
            gradients.add_(weights, alpha=self.decay)
        square = self.state[0].addcmul_(gradients, gradients)
        weights.sub_(gradients.div_(square.sqrt().add_(1e-10)).mul_(rates))

    def _nadam(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        if self.decay:
            gradients.add_(weights, alpha=self.decay)
        now, after = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * count)) for count in (self.count, self.count + 1))
        self.mu_product.mul_(now)
        mean, square = self.state[:2]
        mean.lerp_(gradients, 0.1)
        square.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
        size = square.sqrt().div_((1 - 0.999**self.count).sqrt()).add_(1e-8)
        share_of_gradient = ((1 - now) / (1 - self.mu_product)).float()
        share_of_mean = (after / (1 - self.mu_product * after)).float()
        weights.sub_((gradients * share_of_gradient + mean * share_of_mean).div_(size).mul_(rates))

    def _muon(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        kept = [(span, gradients[:, span].clone()) for span, _ in self.matrices]
        for span, _ in self.matrices:
            gradients[:, span] = 0.0  # AdamW then leaves these weights, but for their decay
        self._adamw(weights, gradients, rates)
        for (span, gradient), (_, shape) in zip(kept, self.matrices, strict=True):
            buffer = self.state[2][:, span].lerp_(gradient, 0.05)
            direction = gradient.lerp(buffer, 0.95).view(-1, *shape)
            scale = 0.2 * max(shape) ** 0.5
            weights[:, span] -= rates * scale * orthogonalised(direction).flatten(1)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton and Schulz's iteration in bfloat16, as `torch.optim.Muon`, on matrices [copies, rows, columns]."""
    x = matrices.bfloat16()
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)

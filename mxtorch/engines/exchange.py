"""What processes exchange outside of DDP and FSDP2: first weights, buffers, and gradients after the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mxtorch.engines import processes

# Gradients that are exchanged after the backward pass go together in pieces of this size, as in DDP.
BUCKET_BYTES = 25 * 2**20


def broadcast_values(tensor: Tensor) -> None:
    """Give all processes the main one's values."""
    if tensor.numel():
        values = tensor.detach()
        dense = values.contiguous()
        dist.broadcast(dense, 0)
        if dense is not values:
            values.copy_(dense)


def broadcast_buffers(modules: Iterable[nn.Module]) -> None:
    """Give all processes the main one's buffers, as DDP does: running statistics are those of its share of data.

    After the forward passes of a step, so that what is judged, averaged and saved after it is the same everywhere.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for module in modules:
        for buffer in module.buffers():
            if buffer.numel():
                kinds.setdefault(buffer.dtype, []).append(buffer.detach())
    for buffers in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, 0)
        if dist.get_rank():
            parts = torch.split(flat, [buffer.numel() for buffer in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view(buffer.shape))


@torch.no_grad()
def mean_gradients(parameters: list[Any]) -> None:
    """Exchange gradients after the backward pass. A parameter without one on any process stays without."""
    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    dist.all_reduce(present, dist.ReduceOp.MAX, group=processes.control_group())
    used = [p for p, is_present in zip(parameters, present.tolist(), strict=True) if is_present]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, torch.split(flat, [one.numel() for one in bucket]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, several at a time."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(gradient.dtype, []).append(gradient)
    for same in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for gradient in same:
            if bucket and size + gradient.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(gradient)
            size += gradient.nbytes
        if bucket:
            yield bucket

"""A model of which each process holds a part of every parameter: FSDP2 (`torch.distributed.fsdp.fully_shard`).

The module stays what it is, with its names: `fully_shard` gathers the parameters of a block before it computes, in
hooks of the block, and its parameters become `DTensor`s, whose local part is what the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mxtorch.optim.scheduled import ScheduledOptim


def shard(
    model: nn.Module,
    optimizers: Iterable[ScheduledOptim],
    device: torch.device,
    *,
    half: bool,
    wrap: Any = None,
) -> None:
    """Shard a model in place, and let its optimizers hold the sharded parameters.

    Args:
        model: Its parameters may be on the CPU still: they go to the device a block at a time.
        optimizers: Without state.
        device: Of this process.
        half: Gather and compute in bfloat16. Gradients are added up, and parameters kept, in float32.
        wrap: The classes of the blocks, or their names; None for the elements of the model's module lists.

    Raises:
        ValueError: An optimizer has a state already; there is no module of a class in `wrap`.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if any(optimizer.state for optimizer in optimizers):
        raise ValueError(
            "optimizer: it has a state already, which belongs to parameters that are not sharded; make it anew, and "
            "load a checkpoint with Trainer.load or fit(resume=...)"
        )
    before = list(model.parameters())
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    inner, outer = MixedPrecisionPolicy(), MixedPrecisionPolicy()
    if half:
        inner = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        # A loss in bfloat16 would have three digits.
        outer = MixedPrecisionPolicy(torch.bfloat16, torch.float32, output_dtype=torch.float32)
    for block in blocks_of(model, wrap):
        fully_shard(block, mesh=mesh, mp_policy=inner)
    # By default the outermost parameters would stay gathered after a forward pass, and what a trial or a search puts
    # back are the sharded ones.
    fully_shard(model, mesh=mesh, mp_policy=outer, reshard_after_forward=True)
    sharded = {id(old): new for old, new in zip(before, model.parameters(), strict=True)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [sharded[id(parameter)] for parameter in group["params"]]


def blocks_of(model: nn.Module, wrap: Any) -> list[nn.Module]:
    """The modules whose parameters are gathered together, inner ones first.

    >>> stack = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    >>> len(blocks_of(nn.Sequential(nn.Embedding(8, 4), stack), None))
    2
    """
    if wrap is None:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        found = {id(block): block for blocks in lists for block in blocks if any(True for _ in block.parameters())}
        return list(reversed(found.values()))
    kinds = [wrap] if isinstance(wrap, (str, type)) else list(wrap)
    names = {kind if isinstance(kind, str) else kind.__name__ for kind in kinds}
    blocks = [module for module in model.modules() if module is not model and type(module).__name__ in names]
    if lacking := names - {type(block).__name__ for block in blocks}:
        raise ValueError(f"wrap: the model has no {', '.join(sorted(lacking))}; give the classes of its blocks")
    return blocks[::-1]


def local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor, to be changed in place; another tensor itself."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def gradients_of(optimizer: ScheduledOptim) -> Iterator[Tensor]:
    """This process's parts of the gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and (part := local(parameter.grad)).numel():
                yield part


@torch.no_grad()
def norm_of(gradients: list[Tensor], device: torch.device, bad: Tensor | None = None) -> Tensor:
    """The norm of all gradients together, of which each process has parts; all processes together.

    Args:
        gradients: This process's parts.
        device: Where the norm is computed.
        bad: A flag on the device, 1 where a part was not finite before its values were clipped: the norm is then
            infinite, on all processes.
    """
    squares = torch.zeros((), device=device)
    if gradients:
        squares = torch.stack(torch._foreach_norm(gradients)).float().square().sum()
    if bad is not None:
        squares = torch.where(bad > 0, torch.inf, squares)
    dist.all_reduce(squares)
    return squares.sqrt()


@torch.no_grad()
def clip(gradients: list[Tensor], norm: Tensor, most: float) -> None:
    """Scale gradients so that their norm is at most so large; the formula of `torch.nn.utils.clip_grad_norm_`."""
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for dtype in {gradient.dtype for gradient in gradients}:
        torch._foreach_mul_([gradient for gradient in gradients if gradient.dtype == dtype], factor.to(dtype))

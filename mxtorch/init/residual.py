"""Residual blocks that start as the identity."""

from __future__ import annotations

from torch import nn

from mxtorch._checks import closest
from mxtorch.init.default import is_norm

_SHORTCUTS = ("downsample", "shortcut", "skip", "identity", "proj")


def last_norms(net: nn.Module, block: type[nn.Module] | tuple[type[nn.Module], ...] | str) -> dict[str, str]:
    """Overrides for `initialize` that set the scale of each residual block's last norm to zero.

    Every block then starts as the identity, which helps deep networks and large batches in the first steps (Goyal et
    al. 2017, arXiv 1706.02677, sec. 5.1). The last norm is the norm that the block registered last. Norms of shortcuts
    are not counted.

    Args:
        net: The network.
        block: The class of the residual blocks, a tuple of classes, or the name of the class.

    Returns:
        A dictionary with the name of each scale as key and `"zeros"` as value.

    Raises:
        ValueError: The network has no such block, or a block has no norm with a scale.
        TypeError: `block` is neither a class nor a name.

    Example:
        >>> from mxtorch import init, nn
        >>> class Block(nn.Sequential):
        ...     def forward(self, input):
        ...         return input + super().forward(input)
        >>> net = nn.Sequential(Block(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 2))
        >>> init.last_norms(net, Block)
        {'0.1.weight': 'zeros'}
    """
    kinds = block if isinstance(block, tuple) else (block,)
    if not all(isinstance(kind, (str, type)) for kind in kinds):
        raise TypeError(f"block: got {block!r}; give the class of the residual blocks, or its name")
    overrides = {}
    for prefix, module in net.named_modules():
        if any(type(module).__name__ == kind if isinstance(kind, str) else isinstance(module, kind) for kind in kinds):
            overrides[f"{prefix}.{_last_norm(module)}.weight".lstrip(".")] = "zeros"
    if not overrides:
        there = sorted({type(module).__name__ for module in net.modules()})
        raise ValueError(f"block: got {block!r}, which is not in the network{closest(str(block), there)}")
    return overrides


def _last_norm(block: nn.Module) -> str:
    names: list[str] = [
        name
        for name, module in block.named_modules()
        if is_norm(module) and module.weight is not None and not name.startswith(_SHORTCUTS)
    ]
    if not names:
        raise ValueError(f"block: got {type(block).__name__}, which has no norm with a scale; give another class")
    return names[-1]

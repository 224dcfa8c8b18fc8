"""What an initialiser is, and what it may know of the place that it fills."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mxtorch._checks import number

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION_STACK = 3  # in_proj_weight holds the projections of query, key and value, one below the other


@dataclasses.dataclass(frozen=True)
class Place:
    """A parameter in its layer.

    Args:
        module: The layer.
        name: The parameter's name in it, as in `"weight"` or `"bias_hh_l0"`.
    """

    module: nn.Module
    name: str

    @property
    def activation(self) -> nn.Module | None:
        """The layer's own activation, from which gains are derived; None where it has none of its own.

        Between the weights of gated and attention layers and what follows on their output stand gates and a softmax.
        """
        if isinstance(self.module, (nn.RNN, nn.RNNCell)):
            return nn.ReLU() if self.module.nonlinearity == "relu" else nn.Tanh()
        if isinstance(self.module, (*_RECURRENT, nn.MultiheadAttention)):
            return None
        activation = getattr(self.module, "activation", None)
        return activation if isinstance(activation, nn.Module) else None

    @property
    def groups(self) -> int:
        """The groups of a convolution; 1 elsewhere."""
        groups = getattr(self.module, "groups", 1)
        return groups if isinstance(groups, int) else 1

    @property
    def blocks(self) -> int:
        """How many matrices are stacked along the first dimension: a recurrent layer's gates, attention's projections.

        Each is a matrix of its own to an initialiser, so that fans are those of one gate and each gate is orthogonal.
        """
        if isinstance(self.module, nn.MultiheadAttention):
            return _ATTENTION_STACK if self.name.startswith("in_proj") else 1
        if isinstance(self.module, _RECURRENT) and not self.name.startswith("weight_hr"):
            return int(getattr(self.module, self.name).shape[0]) // self.module.hidden_size
        return 1

    @property
    def padding_index(self) -> int | None:
        """The row of an embedding that stays zero."""
        return self.module.padding_idx if isinstance(self.module, (nn.Embedding, nn.EmbeddingBag)) else None


@dataclasses.dataclass(frozen=True)
class Initializer:
    """The base of all initialisers: call it with a tensor to fill it in place.

    A subclass is a frozen dataclass that implements `fill`, and `check` where it can't apply to every shape.
    """

    splits_blocks: ClassVar[bool] = True  # False: `fill` gets stacked gates as they are

    def __call__(
        self, tensor: Tensor, *, generator: torch.Generator | None = None, place: Place | None = None
    ) -> Tensor:
        """Fill the tensor and return it. Nothing is recorded for gradients; a meta tensor stays as it is.

        Args:
            tensor: Any floating-point tensor. The values are the same in every memory format.
            generator: Where random numbers come from; torch's global generator when left out. It may be of another
                device than the tensor: values are then drawn on its device, so that a CPU generator gives the same
                weights everywhere.
            place: The parameter's layer, from which gains and groups are derived; none is assumed when left out.

        Raises:
            ValueError: It can't apply to this shape.
        """
        self.check_in(tensor, place)
        blocks = self._blocks(place)
        if tensor.numel() == 0 or tensor.is_meta:
            return tensor
        device = tensor.device if generator is None else generator.device
        with torch.no_grad():
            filled = tensor
            if not tensor.is_contiguous() or device.type != tensor.device.type:
                filled = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for block in filled.chunk(blocks) if blocks > 1 else (filled,):
                self.fill(block, generator, place)
            if filled is not tensor:
                tensor.copy_(filled)
            if place is not None and place.padding_index is not None:
                tensor[place.padding_index].fill_(0)
        return tensor

    def __str__(self) -> str:
        """As its `repr`, without what is left at its default."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    def check_in(self, tensor: Tensor, place: Place | None = None) -> None:
        """Raise a ValueError where it can't apply to this tensor, at its place."""
        blocks = self._blocks(place)
        self.check(torch.Size((tensor.shape[0] // blocks, *tensor.shape[1:])) if blocks > 1 else tensor.shape, place)

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Raise a ValueError where it can't apply to tensors of this shape."""

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill a contiguous tensor, or one gate of it, in place; gradients are off."""
        raise NotImplementedError

    def _blocks(self, place: Place | None) -> int:
        return place.blocks if place is not None and self.splits_blocks else 1

    def _refuse(self, shape: torch.Size, needs: str) -> None:
        raise ValueError(f"{self!r}: it can't fill the shape {tuple(shape)}; it needs {needs}")

    def _check_matrix(self, shape: torch.Size) -> None:
        if len(shape) < 2:
            self._refuse(shape, "2 or more dimensions; give a bias or scale zeros, ones, constant, uniform or normal")

    def _check_numbers(self, *fields: str, low: float = -math.inf, high: float = math.inf) -> None:
        for field in fields:
            given = getattr(self, field)
            value = number(given)
            if value is None or not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{field}: got {given!r}; give a finite number from {low:g} to {high:g}")
            object.__setattr__(self, field, value)


@dataclasses.dataclass(frozen=True)
class Function(Initializer):
    """A function that fills a tensor in place, such as those of `torch.nn.init`, as an initialiser.

    Where it takes no `generator`, a generator given to the initialiser seeds torch's global one for the call, which
    has its state back afterwards.

    Args:
        function: Called with the tensor, and with `generator=` where it has an argument of that name.
    """

    function: Callable[..., Any]

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Call the function."""
        if generator is None:
            self.function(tensor)
        elif _takes_generator(self.function):
            self.function(tensor, generator=generator)
        else:
            with globally_seeded(generator, tensor.device):
                self.function(tensor)


@contextlib.contextmanager
def globally_seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the CPU and of the device, seeded from `generator`; afterwards as they were."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.get_device_module(device).manual_seed(seed)
        yield


def _takes_generator(function: Callable[..., Any]) -> bool:
    try:
        return "generator" in inspect.signature(function).parameters
    except ValueError:  # a built-in one that has no signature to read
        return False

"""The base class of initialisers, and the place of a parameter in its layer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mxtorch._checks import closest, number, whole_number

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_ATTENTION_STACK = 3  # in_proj_weight stacks the projections of query, key and value


@dataclasses.dataclass(frozen=True)
class Place:
    """A parameter in its layer.

    Args:
        module: The layer.
        name: The parameter's name in the layer, as in `"weight"` or `"bias_hh_l0"`.
    """

    module: nn.Module
    name: str

    @property
    def activation(self) -> nn.Module | None:
        """The layer's own activation, from which gains are derived; None for a layer without one.

        It is None for gated layers and attention, too, because gates or a softmax follow their weights before the
        activation does.
        """
        if isinstance(self.module, (nn.RNN, nn.RNNCell)):
            return nn.ReLU() if self.module.nonlinearity == "relu" else nn.Tanh()
        if isinstance(self.module, (*_RECURRENT, nn.MultiheadAttention)):
            return None
        activation = getattr(self.module, "activation", None)
        return activation if isinstance(activation, nn.Module) else None

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 for every other layer."""
        groups = getattr(self.module, "groups", 1)
        return groups if isinstance(groups, int) else 1

    @property
    def blocks(self) -> int:
        """The number of matrices in the first dimension: the gates of a recurrent layer, the projections of attention.

        An initialiser fills these one at a time, so that the fans are those of one gate, and each gate is orthogonal.
        """
        if isinstance(self.module, nn.MultiheadAttention):
            return _ATTENTION_STACK if self.name.startswith("in_proj") else 1
        if isinstance(self.module, _RECURRENT) and not self.name.startswith("weight_hr"):
            return int(getattr(self.module, self.name).shape[0]) // self.module.hidden_size
        return 1

    @property
    def padding_index(self) -> int | None:
        """The row of an embedding that stays zero; None if there is none."""
        return self.module.padding_idx if isinstance(self.module, (nn.Embedding, nn.EmbeddingBag)) else None


@dataclasses.dataclass(frozen=True)
class Initializer:
    """The base of all initialisers. Calling an initialiser with a tensor fills the tensor in place.

    A subclass is a frozen dataclass. It names a function of `torch.nn.init` that takes its fields in their order, or
    implements `fill`. If `dimensions` is not enough to say which shapes it can fill, it overrides `check`.

    Example:
        >>> import torch
        >>> from mxtorch import init
        >>> init.Constant(0.5)(torch.empty(2))
        tensor([0.5000, 0.5000])
        >>> generator = torch.Generator().manual_seed(0)
        >>> init.Normal(std=0.02)(torch.empty(1000), generator=generator).std() < 0.021
        tensor(True)
    """

    torch_function: ClassVar[str] = ""
    """The function of `torch.nn.init` that fills the tensor."""

    dimensions: ClassVar[tuple[int, int]] = (0, sys.maxsize)
    """The smallest and the largest number of dimensions of a tensor."""

    needs: ClassVar[str] = ""
    """A description of these dimensions for error messages."""

    splits_blocks: ClassVar[bool] = True
    """Whether `fill` is called for each matrix of a stack; see `Place.blocks`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "check" in field.metadata and not (value is None and field.default is None):
                object.__setattr__(self, field.name, field.metadata["check"](value, field.name))

    def __call__(
        self, tensor: Tensor, *, generator: torch.Generator | None = None, place: Place | None = None
    ) -> Tensor:
        """Fill the tensor and return it. Gradients do not record this; a meta tensor does not change.

        Args:
            tensor: Any floating-point tensor. The values do not depend on its memory format.
            generator: The source of random numbers; by default torch's global generator. The values are drawn on the
                generator's device and copied to the tensor's, so a CPU generator gives the same values on every device.
            place: The parameter's layer, from which gains and groups are derived.

        Raises:
            ValueError: The initialiser can't fill this shape.
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
        """The `repr` without the fields that have their default values."""
        fields = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    def check_in(self, tensor: Tensor, place: Place | None = None) -> None:
        """Raise a ValueError if the initialiser can't fill this tensor at this place."""
        blocks = self._blocks(place)
        self.check(torch.Size((tensor.shape[0] // blocks, *tensor.shape[1:])) if blocks > 1 else tensor.shape, place)

    def check(self, shape: torch.Size, place: Place | None) -> None:
        """Raise a ValueError if the initialiser can't fill a tensor of this shape."""
        least, largest = self.dimensions
        if not least <= len(shape) <= largest:
            self._refuse(shape, self.needs)

    def fill(self, tensor: Tensor, generator: torch.Generator | None, place: Place | None) -> None:
        """Fill a contiguous tensor, or one matrix of a stack, in place. Gradients are turned off."""
        self._draw(tensor, generator, *(getattr(self, field.name) for field in dataclasses.fields(self)))

    def _draw(self, tensor: Tensor, generator: torch.Generator | None, *settings: Any) -> None:
        """Call torch's function."""
        if not self.torch_function:
            raise NotImplementedError(f"{type(self).__name__} has no torch_function, so it must implement fill")
        function = getattr(nn.init, self.torch_function)
        options = {"generator": generator} if _torch_takes_generator(function) else {}
        function(tensor, *settings, **options)

    def _blocks(self, place: Place | None) -> int:
        return place.blocks if place is not None and self.splits_blocks else 1

    def _refuse(self, shape: torch.Size, needs: str) -> None:
        raise ValueError(f"{self!r} can't fill the shape {tuple(shape)}; it needs {needs}")


@dataclasses.dataclass(frozen=True)
class Function(Initializer):
    """An initialiser that calls a function, which fills a tensor in place, such as those of `torch.nn.init`.

    If the function has an argument `generator`, it gets the generator. For any other function, the generator seeds
    torch's global generator during the call; afterwards, the global generator has its old state.

    Args:
        function: Called with the tensor, and with `generator=` if it has that argument.

    Example:
        >>> import torch
        >>> Function(torch.nn.init.ones_)(torch.empty(2)).tolist()
        [1.0, 1.0]
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


def real(low: float = -math.inf, high: float = math.inf) -> Mapping[str, Any]:
    """The metadata of a field that must be a finite number between two bounds."""

    def check(given: Any, name: str) -> float:
        value = number(given)
        if value is None or not math.isfinite(value) or not low <= value <= high:
            bounds = [f"of at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
            raise ValueError(f"{name}: got {given!r}; give a finite number {' and '.join(bounds)}".rstrip())
        return value

    return {"check": check}


def integer(least: int) -> Mapping[str, Any]:
    """The metadata of a field that must be an integer of at least `least`."""

    def check(given: Any, name: str) -> int:
        value = whole_number(given)
        if value is None or value < least:
            raise ValueError(f"{name}: got {given!r}; give an integer of at least {least}")
        return value

    return {"check": check}


def choice(names: Collection[str]) -> Mapping[str, Any]:
    """The metadata of a field that must be one of several names."""

    def check(given: Any, name: str) -> Any:
        if given not in names:
            raise ValueError(f"{name}: got {given!r}{closest(str(given), names)}")
        return given

    return {"check": check}


@contextlib.contextmanager
def globally_seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and the device from `generator`; restore them afterwards."""
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
    except ValueError:  # a built-in function whose signature can't be read
        return False


_torch_takes_generator = functools.lru_cache(maxsize=64)(_takes_generator)  # only for torch's own functions

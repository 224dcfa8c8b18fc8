"""One name, `fc`, for the classifier of every network."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


class _HeadNamedFc:
    """Put before a network's class: reading and assigning `fc` means the head, wherever that is.

    A property alone would not do: `nn.Module.__setattr__` files a module under the assigned name before it looks
    at properties.
    """

    _head_name: str

    @property
    def fc(self) -> Any:
        """The classifier."""
        return getattr(self, self._head_name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fc":
            if not isinstance(value, nn.Module):
                raise TypeError(f"fc: got {value!r}; give a torch.nn.Module, as nn.Linear({_features(self)}, 120)")
            name = self._head_name
            if isinstance(value, nn.Linear) and "num_classes" in vars(self):
                super().__setattr__("num_classes", value.out_features)
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: copies and pickles rebuild it from what it is made of.
        return _blank, (type(self).__mro__[2], self._head_name), vars(self)


def name_head(net: nn.Module, head: str) -> nn.Module:
    """Make `net.fc` stand for `net.<head>`; parameter names and the rest stay as they are."""
    if head != "fc":
        net.__class__ = _class_with_fc(type(net), head)  # type: ignore[arg-type]
    return net


@functools.cache
def _class_with_fc(base: type[nn.Module], head: str) -> type[nn.Module]:
    members = {"_head_name": head, "__doc__": base.__doc__, "__module__": base.__module__}
    return type(base.__name__, (_HeadNamedFc, base), members)


def _blank(base: type[nn.Module], head: str) -> nn.Module:
    kind = _class_with_fc(base, head)  # type: ignore[arg-type]
    return kind.__new__(kind)


def _features(net: Any) -> Any:
    return getattr(net.fc, "in_features", "...")

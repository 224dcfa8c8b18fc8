"""One name, `fc`, for the classifier of every network."""

from __future__ import annotations

from typing import Any

from torch import nn

_classes: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


class _HeadNamedFc:
    """Put before a network's class: assigning `fc` means the head, wherever that is.

    A property alone would not do: `nn.Module.__setattr__` files a module under the assigned name before it looks
    at properties.
    """

    _head_base: type[nn.Module]
    _head_name: str

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fc":
            if not isinstance(value, nn.Module):
                features = getattr(getattr(self, self._head_name), "in_features", "...")
                raise TypeError(f"fc: got {value!r}; give a torch.nn.Module, such as nn.Linear({features}, 120)")
            outputs = _outputs(value)
            if outputs is not None and "num_classes" in vars(self):  # timm's own record of it
                super().__setattr__("num_classes", outputs)
            name = self._head_name
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: copies and pickles rebuild it from what it is made of.
        made: type[Any] | None = _classes.get((self._head_base, self._head_name))
        if made is not type(self):  # someone's subclass of it
            return super().__reduce_ex__(protocol)
        return _blank, (self._head_base, self._head_name), vars(self)


def name_head(net: nn.Module, head: str) -> nn.Module:
    """Make `net.fc` stand for `net.<head>`.

    The network gets a subclass of its class; its parameters, their names and its output stay as they are. One that
    calls its head `fc` and keeps no count of its outputs needs nothing, and stays what it is.

    Args:
        net: The network, changed in place.
        head: The attribute that holds its classifier.

    Returns:
        The network.
    """
    if head != "fc" or hasattr(net, "num_classes"):
        net.__class__ = _class_with_fc(type(net), head)
    return net


def _class_with_fc(base: type[nn.Module], head: str) -> type[nn.Module]:
    if (base, head) not in _classes:
        members: dict[str, Any] = {
            "_head_base": base,
            "_head_name": head,
            "__doc__": base.__doc__,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
        }
        if head != "fc":
            members["fc"] = property(lambda self: getattr(self, head), doc="The classifier.")
            members["__jit_unused_properties__"] = [*getattr(base, "__jit_unused_properties__", ()), "fc"]
        _classes.setdefault((base, head), type(base.__name__, (_HeadNamedFc, base), members))
    return _classes[base, head]


def _blank(base: type[nn.Module], head: str) -> nn.Module:
    kind = _class_with_fc(base, head)
    return kind.__new__(kind)


def _outputs(head: nn.Module) -> int | None:
    """How many numbers come out: what its last layer with such a count says."""
    counts = [module.out_features for module in head.modules() if isinstance(module, nn.Linear)]
    return counts[-1] if counts else None

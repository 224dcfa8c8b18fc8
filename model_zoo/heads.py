"""The name `fc` for the classifier of every network; frozen normalisation that stays in evaluation mode."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn


class ConvolutionHead(nn.Conv2d):
    """A 1 x 1 convolution as classifier, with the attributes `in_features` and `out_features` of `nn.Linear`."""

    @property
    def in_features(self) -> int:
        """The number of input features, under the name of `nn.Linear`."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """The number of classes, under the name of `nn.Linear`."""
        return self.out_channels


class _OfTheZoo:
    """A base class before a network's own class: `fc` is the head, whatever the real path of the head is.

    A property alone is not enough, because `nn.Module.__setattr__` registers a module under the assigned name before
    it searches properties.
    """

    _head_name: str
    zoo_frozen_norms: tuple[str, ...]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "fc":
            super().__setattr__(name, value)
            return
        if not isinstance(value, nn.Module):
            raise TypeError(f"fc: got {value!r}; give a torch.nn.Module, such as nn.Linear({_features(self)}, 120)")
        old = head_of(self)
        if getattr(old, "_forward_pre_hooks", None):
            forget_maps(old)
        if isinstance(old, nn.Conv2d) or getattr(self, "_head_sees_maps", False):
            super().__setattr__("_head_sees_maps", True)
            value = see_maps(value)
        parent, _, last = self._head_name.rpartition(".")
        if parent:
            setattr(self.get_submodule(parent), last, value)  # type: ignore[attr-defined]
        else:
            super().__setattr__(last, value)
        if isinstance(value, nn.Linear | nn.Conv2d) and "num_classes" in vars(self):
            super().__setattr__("num_classes", getattr(value, "out_features", None) or value.out_channels)
        super().__setattr__("classes", None)  # these were the names of the old head's outputs

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode; normalisation that `freeze_to` froze stays in evaluation mode."""
        super().train(mode)  # type: ignore[misc]
        frozen = vars(self).get("zoo_frozen_norms", ())
        if frozen:
            modules = dict(self.named_modules())  # type: ignore[attr-defined]
            for name in frozen:
                if name in modules:  # the user may have removed the module
                    modules[name].eval()
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so copies and pickles hold its parts and make the class again.
        return _blank, (type(self).__mro__[2], self._head_name), vars(self)


def name_head(net: nn.Module, head: str) -> nn.Module:
    """Make `net.fc` another name of `net.<head>`; the names of parameters do not change."""
    net.__class__ = _class_with_fc(type(net), head)  # type: ignore[arg-type]
    classifier = head_of(net)
    if type(classifier) is nn.Conv2d:
        classifier.__class__ = ConvolutionHead
    vars(net)["classes"] = None
    return net


def head_of(net: Any) -> Any:
    """The classifier of a network of the zoo."""
    return net.get_submodule(net._head_name)


def see_maps(head: nn.Module) -> nn.Module:
    """Make a head for vectors, such as `nn.Linear`, take feature maps [N, C, H, W] and classify every position."""
    if not any(isinstance(module, nn.Conv2d) for module in head.modules()):
        head.register_forward_pre_hook(_channels_last)
        head.register_forward_hook(_channels_first)
    return head


def forget_maps(head: nn.Module) -> None:
    """Undo `see_maps`."""
    for hooks, ours in ((head._forward_pre_hooks, _channels_last), (head._forward_hooks, _channels_first)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]


def _channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0].permute(0, 2, 3, 1)


def _channels_first(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


@functools.cache
def _class_with_fc(base: type[nn.Module], head: str) -> type[nn.Module]:
    members: dict[str, Any] = {"_head_name": head, "__doc__": base.__doc__, "__module__": base.__module__}
    if head != "fc":
        members["fc"] = property(head_of, doc="The classifier.")
    return type(base.__name__, (_OfTheZoo, base), members)


def _blank(base: type[nn.Module], head: str) -> nn.Module:
    kind = _class_with_fc(base, head)  # type: ignore[arg-type]
    return kind.__new__(kind)


def _features(net: Any) -> Any:
    return getattr(head_of(net), "in_features", "...")

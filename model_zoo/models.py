"""A function for each model of the list."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, get_args

from torch import nn

from .catalogue import ENTRIES
from .catalogue.names import ModelName
from .families import FAMILIES

P = ParamSpec("P")


def functions(build: Callable[Concatenate[str, P], nn.Module]) -> Iterator[Callable[P, nn.Module]]:
    """A function for each model, in the order of `ModelName`.

    Args:
        build: Takes the name of a model as its first argument. The functions take the other arguments.
    """
    for name in get_args(ModelName):
        yield _function(build, name)


def _function(build: Callable[Concatenate[str, P], nn.Module], name: str) -> Callable[P, nn.Module]:
    def model(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
        return build(name, *args, **kwargs)

    family = FAMILIES[ENTRIES[name].family]
    signature = inspect.signature(build)
    _, *parameters = signature.parameters.values()
    model.__module__ = __name__.rpartition(".")[0]
    model.__name__ = model.__qualname__ = name
    model.__doc__ = f"{name}, {family.title} ({family.paper}); see `create`."
    vars(model)["__signature__"] = signature.replace(parameters=parameters)
    return model

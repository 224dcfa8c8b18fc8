"""Initialisers by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

from mxtorch._checks import closest
from mxtorch.init import default, initializers
from mxtorch.init.base import Function, Initializer

InitializerName = (
    Literal["zeros", "ones", "constant", "uniform", "normal", "truncated_normal"]
    | Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "lecun_uniform", "lecun_normal"]
    | Literal["orthogonal", "fixup", "identity", "dirac", "sparse", "bilinear", "lstm_bias", "default"]
)
"""The names of the initialisers in this package."""

InitializerLike = InitializerName | str | Initializer | Callable[..., Any]
"""The values of every argument for an initialiser: a name, an initialiser, or a function that fills a tensor in place.

The type includes `str`, because `register` adds names.
"""

T = TypeVar("T", bound=Callable[..., Any])

_ALIASES = {
    "eye": "identity",
    "glorot_normal": "xavier_normal",
    "glorot_uniform": "xavier_uniform",
    "he_normal": "kaiming_normal",
    "he_uniform": "kaiming_uniform",
    "trunc_normal": "truncated_normal",
    "xavier": "xavier_uniform",
}


def get(initializer: InitializerLike, argument: str = "initializer", **settings: Any) -> Initializer:
    """The initialiser for a name, for a class, or for a function. An initialiser is returned as it is.

    Args:
        initializer: A name (`"kaiming_normal"`, `"KaimingNormal"`), an initialiser or its class, or a function that
            fills a tensor in place, such as those of `torch.nn.init`.
        argument: The name of the argument in errors.
        **settings: The fields of the initialiser, for a name or a class.

    Raises:
        ValueError: The name or a setting is unknown, a required setting is missing, or a value is out of range.
        TypeError: `initializer` is none of these, or there are settings for something other than a name or a class.

    Example:
        >>> from mxtorch import init
        >>> init.get("normal", std=0.02)
        Normal(mean=0.0, std=0.02)
    """
    if isinstance(initializer, str):
        name = _snake_case(initializer)
        kind = _BY_NAME.get(_ALIASES.get(name, name))
        if kind is None:
            raise ValueError(f"{argument}: got {initializer!r}{closest(name, _BY_NAME)}")
        return _make(kind, argument, settings)
    if isinstance(initializer, type) and issubclass(initializer, Initializer):
        return _make(initializer, argument, settings)
    if not callable(initializer) or isinstance(initializer, type):
        raise TypeError(
            f"{argument}: got {initializer!r}; give a name, an initialiser, or a function that fills a tensor"
        )
    if settings:
        raise TypeError(f"{argument}: got {initializer!r} with {', '.join(settings)}; give settings only with a name")
    return initializer if isinstance(initializer, Initializer) else Function(initializer)


def register(name: str) -> Callable[[T], T]:
    """A decorator that gives a name to an initialiser class, or to a function that fills a tensor in place.

    Every argument for an initialiser then takes this name.

    Args:
        name: The name, in lower case with underscores.

    Raises:
        TypeError: The name is not a string, or the decorated object is neither of the two.
        ValueError: The name is taken, or is not lower case with underscores.

    Example:
        >>> import torch
        >>> from mxtorch import init, nn
        >>> @init.register("sevens")
        ... def sevens(tensor):
        ...     torch.nn.init.constant_(tensor, 7.0)
        >>> nn.Linear(1, 2, bias_init="sevens").bias.tolist()
        [7.0, 7.0]
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}; give a string, as in @register('mine')")
    if name in _BY_NAME or name in _ALIASES:
        raise ValueError(f"name: got {name!r}, which is taken; give another name")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name: got {name!r}; give lower-case letters, digits and underscores")

    def decorate(initializer: T) -> T:
        kind: Any = initializer
        if not callable(kind) or (isinstance(kind, type) and not issubclass(kind, Initializer)):
            raise TypeError(f"register: got {initializer!r}; give a subclass of Initializer, or a function")
        _BY_NAME[name] = initializer
        return initializer

    return decorate


def _make(kind: Callable[..., Any], argument: str, settings: dict[str, Any]) -> Initializer:
    if not isinstance(kind, type):
        return get(kind, argument, **settings)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in settings:
        if name not in fields:
            raise ValueError(f"{argument}: {kind.__name__} got {name!r}{closest(name, fields)}")
    required = [name for name, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in settings]
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"{argument}: {kind.__name__} needs {', '.join(missing)}; give init.{kind.__name__}({example})"
        )
    made: Initializer = kind(**settings)
    return made


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_CLASSES = {_snake_case(name): kind for name, kind in (vars(initializers) | vars(default)).items()}
_BY_NAME: dict[str, Callable[..., Any]] = {
    name: _CLASSES[name] for names in get_args(InitializerName) for name in get_args(names)
}

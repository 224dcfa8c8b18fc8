"""Initialisers by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

from mxtorch._checks import closest
from mxtorch.init import default, filling, scaled, structured
from mxtorch.init.base import Function, Initializer

InitializerLike = str | Initializer | Callable[..., Any]
"""What stands for an initialiser wherever one is asked for: a name, an initialiser, a function that fills a tensor."""

T = TypeVar("T", bound=Callable[..., Any])

_BY_NAME: dict[str, Callable[..., Any]] = {
    "zeros": filling.Zeros,
    "ones": filling.Ones,
    "constant": filling.Constant,
    "uniform": filling.Uniform,
    "normal": filling.Normal,
    "truncated_normal": filling.TruncatedNormal,
    "xavier_uniform": scaled.XavierUniform,
    "xavier_normal": scaled.XavierNormal,
    "kaiming_uniform": scaled.KaimingUniform,
    "kaiming_normal": scaled.KaimingNormal,
    "lecun_uniform": scaled.LecunUniform,
    "lecun_normal": scaled.LecunNormal,
    "orthogonal": scaled.Orthogonal,
    "fixup": scaled.Fixup,
    "identity": structured.Identity,
    "dirac": structured.Dirac,
    "sparse": structured.Sparse,
    "bilinear": structured.Bilinear,
    "lstm_bias": structured.LSTMBias,
    "default": default.Default,
}
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
    """An initialiser from its name, in which case `settings` are its fields; an initialiser as it is.

    Args:
        initializer: A name (`"kaiming_normal"`, `"KaimingNormal"`), an initialiser or its class, or a function that
            fills a tensor in place, such as those of `torch.nn.init`.
        argument: What errors call it.
        **settings: Fields of the initialiser, as in `get("normal", std=0.02)`.

    Raises:
        ValueError: The name or a setting is unknown, a setting that is needed is missing, or a value is off.
        TypeError: Something else was given, or settings with something that is no name or class.
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
            f"{argument}: got {initializer!r}; give a name, an initialiser or a function that fills a tensor"
        )
    if settings:
        raise TypeError(f"{argument}: got {initializer!r} with {', '.join(settings)}; settings go with a name")
    return initializer if isinstance(initializer, Initializer) else Function(initializer)


def register(name: str) -> Callable[[T], T]:
    """A decorator that makes an initialiser class, or a function that fills a tensor, known by a name.

    Args:
        name: The name for `get` and everything that takes one; lower case with underscores.

    Raises:
        TypeError: The name is no string, or what is decorated is neither.
        ValueError: The name is taken, or is not lower case with underscores.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}; give a string, as in @register('mine')")
    if name in _BY_NAME or name in _ALIASES:
        raise ValueError(f"name: {name!r} is taken; give another one")
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
    nothing = dataclasses.MISSING
    needed = [name for name, f in fields.items() if f.default is nothing and f.default_factory is nothing]
    missing = [name for name in needed if name not in settings]
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"{argument}: {kind.__name__} needs {', '.join(missing)}; give init.{kind.__name__}({example})"
        )
    made: Initializer = kind(**settings)
    return made


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

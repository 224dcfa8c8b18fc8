"""The states of the random number generators of Python, NumPy and torch, both global generators and objects.

A state has two forms. The raw form is the one that the generator returns; copies in memory use it. The packed form
consists of tensors and plain values, which `torch.load(weights_only=True)` reads; files use it.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The packed states of all global random number generators."""
    state = raw_random_state()
    state["python"] = _packed_python_state(state["python"])
    state["numpy"] = _packed_numpy_state(state["numpy"])
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned."""
    python, numpy = _unpacked_python_state(state["python"]), _unpacked_numpy_state(state["numpy"])
    set_raw_random_state({**state, "python": python, "numpy": numpy})


def _packed_python_state(state: Any) -> list[Any]:
    """The state of a `random.Random`, with its 625 integers as one tensor."""
    version, internal, next_gaussian = state
    return [version, torch.from_numpy(np.array(internal, dtype=np.int64)), next_gaussian]


def _unpacked_python_state(state: Any) -> tuple[Any, ...]:
    """The argument of `random.Random.setstate`."""
    version, internal, next_gaussian = state
    return version, tuple(internal.tolist() if isinstance(internal, Tensor) else internal), next_gaussian


def _packed_numpy_state(state: Any) -> Any:
    """The state of a NumPy bit generator, with its arrays as tensors of the same type."""
    return tree_map(lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf, state)


def _unpacked_numpy_state(state: Any) -> Any:
    """The state of a NumPy bit generator, with its tensors as arrays."""
    return tree_map(lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, state)


def raw_random_state() -> dict[str, Any]:
    """The raw states of all global random number generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.xpu.is_available() and torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        state["xpu"] = torch.xpu.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_raw_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `raw_random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "xpu" in state:
        torch.xpu.set_rng_state_all(state["xpu"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def changed_generators(before: dict[str, Any]) -> list[str]:
    """The names of the global generators that have drawn numbers since `raw_random_state` returned `before`."""
    now = raw_random_state()
    return [name for name, state in before.items() if name not in now or _differ(state, now[name])]


def _differ(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return any(_differ(value, second[name]) for name, value in first.items())
    if isinstance(first, Tensor):
        return not torch.equal(first, second)
    if isinstance(first, list):
        return any(map(_differ, first, second))
    return bool(np.any(first != second)) if isinstance(first, np.ndarray) else bool(first != second)


def is_generator(part: Any) -> bool:
    """Whether an object is a random number generator of torch, Python or NumPy whose state can be read.

    `random.SystemRandom` is not: its numbers come from the operating system, and it has no state.
    """
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
    return isinstance(part, kinds) and not isinstance(part, random.SystemRandom)


def generator_state(generator: Any) -> Any:
    """The raw state of a generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return copy.deepcopy(_bit_generator(generator).state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Restore the state that `generator_state` returned."""
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        _bit_generator(generator).state = state


def packed_generator(generator: Any) -> dict[str, Any]:
    """The kind and the packed state of a random number generator of torch, Python or NumPy."""
    state = generator_state(generator)
    if isinstance(generator, random.Random):
        state = _packed_python_state(state)
    elif not isinstance(generator, torch.Generator):
        state = _packed_numpy_state(state)
    return {"kind": type(generator).__name__, "state": state}


def set_packed_generator(generator: Any, packed: dict[str, Any]) -> None:
    """Restore the state that `packed_generator` returned."""
    state = packed["state"]
    if isinstance(generator, random.Random):
        state = _unpacked_python_state(state)
    elif not isinstance(generator, torch.Generator):
        state = _unpacked_numpy_state(state)
    set_generator_state(generator, state)


def _bit_generator(generator: Any) -> Any:
    return generator if isinstance(generator, np.random.BitGenerator) else generator.bit_generator

"""What `Trainer.export` does: gather the facts, write the file, and the card beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_zoo import Preprocessing, preprocess
from mxtorch._structure import describe
from mxtorch.exporting import formats
from mxtorch.exporting.card import model_card
from mxtorch.exporting.facts import Facts, describe_transform, unwrapped
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import split_batch


def export(
    trainer: Any,
    path: str | Path,
    val_data: Any,
    *,
    train_data: Any,
    classes: Sequence[str] | None,
    preprocessing: Any,
    example: Tensor | None,
    about: str,
) -> Path:
    """See `Trainer.export`."""
    path = Path(path)
    model: Any = unwrapped(trainer.model)
    example = _example(trainer, model, val_data, preprocessing, example)
    if example is None:
        outputs = int(getattr(getattr(model, "fc", None), "out_features", 0))
    else:
        with preserved_modes(model), torch.no_grad():
            given = model.eval()(trainer.engine.move(example))
        if not isinstance(given, Tensor) or given.ndim < 2:
            raise ValueError(f"the model's outputs are a {describe(given)}; export takes one tensor [N, k]")
        outputs = given.shape[1]
    facts = Facts(
        _classes(model, val_data, classes, outputs),
        _preprocessing(model, val_data, preprocessing),
        int(getattr(model, "zoo_in_channels", example.shape[1] if example is not None and example.ndim == 4 else 3)),
        str(getattr(model, "zoo_name", "")),
        outputs,
    )
    formats.write(trainer.model, path, facts, example)
    card = model_card(trainer, path, facts, train_data, val_data, about)
    path.with_suffix(".md").write_text(card)
    return path


def _example(trainer: Any, model: Any, val_data: Any, preprocessing: Any, example: Tensor | None) -> Tensor | None:
    """A few inputs: given, of the data, or random ones of the size that a network of the zoo takes."""
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim < 2:
            raise ValueError(f"example: got a {describe(example)}; give a batch of inputs [N, ...]")
        return example
    if val_data is not None:
        before = trainer.context.capture(val_data)
        try:
            inputs = split_batch(next(iter(val_data))).inputs
        finally:
            before.restore()
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise ValueError("val_data: export takes models of one input; its batches have another form")
        return inputs[0][:4]
    if not hasattr(model, "zoo_name"):
        return None
    size = _preprocessing(model, None, preprocessing)
    assert size is not None
    return torch.randn(2, model.zoo_in_channels, size.size, size.size, generator=torch.Generator().manual_seed(0))


def _classes(model: Any, val_data: Any, classes: Sequence[str] | None, outputs: int) -> tuple[str, ...]:
    if classes is not None and len(classes) != outputs:
        raise ValueError(f"classes: got {len(classes)} names, but the model has {outputs} outputs")
    for names in (
        classes,
        getattr(getattr(val_data, "dataset", None), "classes", None),
        getattr(model, "classes", None),
    ):
        if names is not None and len(names) == outputs:
            return tuple(str(name) for name in names)
    return ()


def _preprocessing(model: Any, val_data: Any, given: Any) -> Preprocessing | None:
    """Given, as a description or a transform; that of the data; that of the zoo."""
    if isinstance(given, Preprocessing):
        return given
    if given is not None:
        return describe_transform(given)
    transform = getattr(getattr(val_data, "dataset", None), "transform", None)
    if transform is not None:
        return describe_transform(transform)
    return describe_transform(preprocess(model)) if hasattr(model, "zoo_name") else None

"""Export of a trained model: gather the facts, write the file, and the model card beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch._structure import describe
from mxtorch.checkpointing.file import atomic_text
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.data.class_names import class_names
from mxtorch.exporting import formats
from mxtorch.exporting.card import model_card
from mxtorch.exporting.facts import Facts, describe_transform, unwrapped
from mxtorch.model_zoo import Preprocessing, preprocess
from mxtorch.optim.schedule_free import evaluation_point
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import split_batch
from mxtorch.training.trainer_view import TrainerView


def export(
    trainer: TrainerView,
    path: str | Path,
    val_data: Iterable[Any] | None = None,
    *,
    train_data: Iterable[Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Any = None,
    example: Tensor | None = None,
    about: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a trained model for use without its training code, and a model card in Markdown beside it.

    `mxtorch.exporting.load(path).predict("picture.jpg")` opens it. Names of classes and preprocessing are in the file.

    Args:
        trainer: The trainer of the model.
        path: `.safetensors` (weights), `.pt2` (torch.export) or `.onnx` (needs the extra `onnx`).
        val_data: Where names of classes (`.classes` of the data set), the preprocessing (its `.transform`) and an
            example of inputs come from. The loader's next pass is the same as without.
        train_data: Described in the card.
        classes: Names of the classes, if the data set has none.
        preprocessing: A transform of torchvision or a `model_zoo.Preprocessing`, if the data set has none.
        example: A batch of inputs [N, ...], for models that are not of the zoo when `val_data` is left out.
        about: A paragraph for the card.
        overwrite: Whether a file, a card or a link at these places is replaced if `export` did not write it.

    Returns:
        The path of the file.

    Raises:
        ValueError: The ending is unknown, the model can't be exported, the outputs of the file are not those of the
            model, a transform can't be described, the number of names is wrong, or something that `export` did not
            write is in the place of the file or of its card.

    Example:
        >>> from mxtorch import Trainer, exporting
        >>> net = nn.Linear(4, 2)
        >>> trainer = Trainer(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), progress=False)
        >>> path = exporting.export(trainer, "net.safetensors", example=torch.randn(3, 4), classes=["no", "yes"])
        >>> predictor = exporting.load(path, model=nn.Linear(4, 2))
        >>> (row,) = predictor.predict(torch.zeros(1, 4))
        >>> list(row["probabilities"])
        ['no', 'yes']
    """
    path = Path(path)
    for each in (path, path.with_suffix(".md")):
        formats.check_replaceable(each, overwrite)
    model: Any = unwrapped(trainer.model)
    example = _example(model, val_data, preprocessing, example)
    outputs = _number_of_outputs(model, example)
    facts = Facts(
        class_names(classes, val_data, model, outputs),
        _preprocessing(model, val_data, preprocessing),
        int(getattr(model, "zoo_in_channels", example.shape[1] if example is not None and example.ndim == 4 else 3)),
        str(getattr(model, "zoo_name", "")),
        outputs,
    )
    with evaluation_point([trainer.optimizer, *trainer.other_optimizers.values()]):
        formats.write(trainer.model, path, facts, example)
    card = model_card(trainer, path, facts, train_data, val_data, about)
    with atomic_text(path.with_suffix(".md")) as file:
        file.write(card)
    return path


def _example(model: Any, val_data: Any, preprocessing: Any, example: Tensor | None) -> Tensor | None:
    """A few inputs: those that were given, else of the data, else random ones of the size of a network of the zoo."""
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim < 2:
            raise ValueError(f"example: got a {describe(example)}; give a batch of inputs [N, ...]")
        return example
    if val_data is not None:
        before = TrainingState((), None, loader=val_data)
        try:
            inputs = split_batch(next(iter(val_data))).inputs
        finally:
            before.restore()
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise ValueError("val_data: export takes models with one input; give batches of (inputs, targets)")
        return inputs[0][:4]
    if not hasattr(model, "zoo_name"):
        return None
    made_for = _preprocessing(model, None, preprocessing)
    assert made_for is not None
    size = made_for.size
    return torch.randn(2, model.zoo_in_channels, size, size, generator=torch.Generator().manual_seed(0))


def _number_of_outputs(model: nn.Module, example: Tensor | None) -> int:
    if example is None:
        return int(getattr(getattr(model, "fc", None), "out_features", 0))
    with preserved_modes(model), torch.no_grad():
        outputs = model.eval()(example.to(next(model.parameters()).device))
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(f"the model's outputs are a {describe(outputs)}; export takes one tensor [N, k]")
    return outputs.shape[1]


def _preprocessing(model: Any, val_data: Any, given: Any) -> Preprocessing | None:
    """The preprocessing that was given, as a description or a transform; else of the data; else of the zoo."""
    if isinstance(given, Preprocessing):
        return given
    if given is None:
        given = getattr(getattr(val_data, "dataset", None), "transform", None)
    if given is None and hasattr(model, "zoo_name"):
        given = preprocess(model)
    return None if given is None else describe_transform(given)

"""Export of a trained model: collect the facts, write the file, and write the model card next to the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mxtorch._checks import local_path
from mxtorch._structure import describe
from mxtorch.checkpointing.file import atomic_text
from mxtorch.checkpointing.snapshot import TrainingState
from mxtorch.data.class_names import class_names
from mxtorch.exporting import formats
from mxtorch.exporting.card import model_card
from mxtorch.exporting.data_source import check_inputs, transforms_of
from mxtorch.exporting.facts import Facts, unwrapped
from mxtorch.exporting.outputs import Outputs, is_multi_label, outputs_of
from mxtorch.exporting.transforms import PictureTransforms, describe_transform
from mxtorch.model_zoo import preprocess
from mxtorch.optim.schedule_free import evaluation_point
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import SupervisedSteps, split_batch
from mxtorch.training.trainer_view import TrainerView

# The largest difference between outputs of `prediction_step` and of the model, relative to their scale.
PRECISION = 2e-2  # bf16 has 8 bits


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
    outputs: Outputs | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained model for use without its training code, and a model card in Markdown next to it.

    `mxtorch.exporting.load(path).predict("picture.jpg")` opens the file. It holds the names of the classes, the
    preprocessing, and the meaning of the outputs. The written preprocessing is compared with the transform that it
    describes, on random pictures, and with the samples of `val_data`. Of several processes, the main process writes.

    Args:
        trainer: The trainer of the model.
        path: A path that ends in `.safetensors` (weights), `.pt2` (torch.export) or `.onnx` (needs the extra `onnx`).
        val_data: The source of the names of classes (`.classes` of the data set), of the preprocessing (its
            `.transform`) and of an example of inputs. The data set may be inside `random_split`, `Subset` and
            `ConcatDataset`. The next pass of the loader does not change.
        train_data: The training data, which the card describes.
        classes: Names of the classes, if the data set has none.
        preprocessing: A torchvision transform or a `model_zoo.Preprocessing`, if the data set has no transform. For a
            network of the zoo without `val_data`, the default is the preprocessing of the weights.
        example: A batch of inputs [N, ...]. It is needed without `val_data`, unless the network is of the zoo.
        about: A paragraph for the card.
        outputs: The meaning of the outputs. None derives it from a loss of torch: `"softmax"` for logits of classes
            (CrossEntropyLoss), `"sigmoid"` for logits of independent classes (BCEWithLogitsLoss), `"exp"` for
            logarithms of probabilities (NLLLoss), `"probabilities"` for probabilities of independent classes
            (BCELoss), `"raw"` for numbers (MSELoss).
        overwrite: Whether to replace a file, a card or a link that `export` did not write.

    Returns:
        The path of the file.

    Raises:
        ValueError: The ending is unknown; the model can't be exported; the outputs of the file differ from those of the
            model; a transform can't be described, or something else changes the pictures, too; the meaning of the
            outputs does not follow from the loss; the number of names is wrong, or a name occurs twice; there is a file
            or card at this path that `export` did not write; or the model is sharded.

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
    path, engine = local_path(path, "path"), trainer.engine
    if engine.shards:
        raise ValueError("export: the model is sharded; load a checkpoint of it in one process, and export there")
    if engine.is_main:
        with engine.alone():
            _write(trainer, path, val_data, train_data, classes, preprocessing, example, about, outputs, overwrite)
    written: Path = engine.broadcast(path)
    return written


def _write(
    trainer: TrainerView,
    path: Path,
    val_data: Any,
    train_data: Any,
    classes: Sequence[str] | None,
    preprocessing: Any,
    example: Tensor | None,
    about: str,
    outputs: Outputs | None,
    overwrite: bool,
) -> None:
    """Write the file and its card; the arguments are those of `export`."""
    for each in (path, path.with_suffix(".md")):
        formats.check_replaceable(each, overwrite)
    model: Any = unwrapped(trainer.model)
    activation = outputs_of(trainer.loss, outputs)
    example, described = _inputs(model, val_data, preprocessing, example)
    count = _number_of_outputs(model, example)
    _check_prediction_step(trainer, model, example)
    facts = Facts(
        class_names(classes, val_data, model, count, or_two=is_multi_label(activation)),
        described,
        _channels(model, example),
        str(getattr(model, "zoo_name", "")),
        count,
        activation,
    )
    with evaluation_point([trainer.optimizer, *trainer.other_optimizers.values()]):
        formats.write(trainer.model, path, facts, example)
    card = model_card(trainer, path, facts, train_data, val_data, about)
    with atomic_text(path.with_suffix(".md")) as file:
        file.write(card)


def _inputs(
    model: Any, val_data: Any, given: Any, example: Tensor | None
) -> tuple[Tensor | None, PictureTransforms | None]:
    """A few inputs, and the description of how pictures become inputs; None for what is not known."""
    if example is not None and (not isinstance(example, Tensor) or example.ndim < 2):
        raise ValueError(f"example: got a {describe(example)}; give a batch of inputs [N, ...]")
    if val_data is None:
        if given is None and getattr(model, "zoo_in_channels", None) in (1, 3):
            given = preprocess(model)
        described = None if given is None else describe_transform(given, _channels(model, example))
        return (_random_example(model, described) if example is None else example), described
    before = TrainingState((), None, loader=val_data)
    try:
        inputs = split_batch(next(iter(val_data))).inputs
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise ValueError("val_data: export needs a model with one input; give batches of (inputs, targets)")
        example = inputs[0][:4] if example is None else example
        channels = _channels(model, example)
        if given is not None:
            return example, describe_transform(given, channels)
        described = transforms_of(val_data, channels)
        if described is not None:
            check_inputs(val_data, inputs[0], described)
        return example, described
    finally:
        before.restore()


def _check_prediction_step(trainer: TrainerView, model: nn.Module, example: Tensor | None) -> None:
    """Raise if a user's `prediction_step` computes other outputs than the model, because only the model is written."""
    own = getattr(type(trainer), "prediction_step", SupervisedSteps.prediction_step)
    if own is SupervisedSteps.prediction_step or example is None:
        return
    expected, found = trainer.predict([(example, None)]), _outputs(model, example)
    scale = max(float(found.abs().max()), 1e-12)
    same_shape = isinstance(expected, Tensor) and expected.shape == found.shape
    if not same_shape or float((expected - found).abs().max()) > PRECISION * scale:
        raise ValueError(
            "prediction_step: it gives other outputs than the model alone, and export writes only the model; move the "
            "computation into the model's forward"
        )


def _channels(model: Any, example: Tensor | None) -> int:
    if hasattr(model, "zoo_in_channels"):
        return int(model.zoo_in_channels)
    return int(example.shape[1]) if example is not None and example.ndim == 4 else 3


def _random_example(model: Any, described: PictureTransforms | None) -> Tensor | None:
    """Random inputs for a network of the zoo; None for other networks."""
    if not hasattr(model, "zoo_name"):
        return None
    size = None if described is None else described.size
    height, width = size if isinstance(size, tuple) else (size or 224,) * 2
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, model.zoo_in_channels, height, width, generator=generator)


def _number_of_outputs(model: nn.Module, example: Tensor | None) -> int:
    if example is None:
        return int(getattr(getattr(model, "fc", None), "out_features", 0))
    return _outputs(model, example).shape[1]


def _outputs(model: nn.Module, example: Tensor) -> Tensor:
    with preserved_modes(model), torch.no_grad():
        outputs = model.eval()(example.to(next(model.parameters()).device))
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(f"the model's outputs are a {describe(outputs)}; export needs one tensor [N, k]")
    return outputs.cpu()

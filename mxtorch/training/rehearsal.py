"""What can be found wrong before the first step of a run: a validation batch on trial, a look at the first batch.

The trial leaves no trace: random generators, buffers, attributes, metrics and the order of the data are put back. The
first training batch is the one that the loop trains on, so nothing is read twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset

from mxtorch._structure import describe, detached
from mxtorch.checkpointing.snapshot import LoaderSnapshot, TrainingState
from mxtorch.training.callback import CallbackList
from mxtorch.training.context import Context
from mxtorch.training.evaluation import evaluate
from mxtorch.training.loss_weight import base_of
from mxtorch.training.metrics import as_figures
from mxtorch.training.supervised import BatchError, StepOutput, batch_size

_Norm = nn.modules.batchnorm._BatchNorm
# Labels of a batch that must all lie in the lowest twentieth of the classes before the head is taken for another's:
# drawn at random, eight do so once in 2.6e10 batches.
FEWEST_LABELS, CLASSES_TO_LABELS, FEWEST_CLASSES = 8, 20, 100


def rehearse_validations(
    context: Context, sets: Mapping[str, Any], metrics: Any, callbacks: CallbackList, before: TrainingState
) -> list[str] | None:
    """As `rehearse_validation`, for validation sets by the prefix of their figures; None where one's are not known."""
    names: list[str] = []
    for prefix, val_data in sets.items():
        found = rehearse_validation(context, val_data, metrics, callbacks, before, prefix)
        if found is None:
            return None
        names += found
    return names


def rehearse_validation(
    context: Context, val_data: Any, metrics: Any, callbacks: CallbackList, before: TrainingState, prefix: str = "val"
) -> list[str] | None:
    """Evaluate the first validation batch, and put everything back.

    It is left out where a look at a batch is not free: for streams and other data without indices, loaders with an
    `__iter__` of their own, and workers that are not forked. So it is for a model with buffers that get their shape
    from the first batch, which can't be undone.

    Args:
        context: The model with everything that computes it.
        val_data: The validation data.
        metrics: A `torchmetrics.MetricCollection`, or None. A copy of it is used.
        callbacks: None of them is called.
        before: A copy of what a step changes.
        prefix: Goes before the names.

    Returns:
        The names of the figures that an evaluation gives; None where it is not known.

    Raises:
        ValueError: `evaluation_step` can't take the batch, gives nothing to report, or a metric can't take its outputs
            and targets or computes something else than numbers.
    """
    if any(is_lazy(buffer) for buffer in context.model.buffers()):
        return None
    order = LoaderSnapshot(val_data)
    try:
        batch = _first_batch(val_data)
        if batch is None:
            return None
        kept = None if metrics is None else _KeptOutputs()
        names = list(evaluate(context, [batch], CallbackList((), callbacks.trainer), kept, prefix))
        if kept is not None:
            computed = metric_names(metrics, kept.outputs, kept.targets, "metrics", prefix)
            return None if computed is None else names + computed
        return names
    finally:
        order.restore()
        before.restore()


def metric_names(metrics: Any, outputs: Any, targets: Any, argument: str, prefix: str) -> list[str] | None:
    """Let copies of metrics take a batch and compute; returns the names of what comes out.

    Returns:
        None where a metric can't compute on one batch alone, which is warned of.

    Raises:
        ValueError: A metric can't take the batch, or computes something else than numbers.
    """
    copies = _without_other_processes(metrics.clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch that has not all classes
        for name, metric in copies.items(copy_state=False):
            _update(f"{argument}: {name!r}", metric, outputs, targets)
        failed: Exception | None = None
        names: list[str] = []
        try:
            copies = _without_other_processes(metrics.clone())
            copies.update(outputs, targets)
            computed = copies.compute()
        except Exception as error:
            failed = error
    if failed is not None:
        warnings.warn(
            f"{argument}: they can't compute on the first batch alone ({type(failed).__name__}: {failed}). Whether "
            "they can on all of the data shows at the end of the first epoch.",
            stacklevel=2,
        )
        return None
    for name, value in computed.items():
        names += as_figures(f"{prefix}/{name}", value)
    return names


def _without_other_processes(metrics: Any) -> Any:
    """Copies of metrics, begun anew, that compute on this process's batch alone."""
    from torchmetrics import Metric

    metrics.reset()
    for module in metrics.modules():
        if isinstance(module, Metric):
            module.distributed_available_fn = lambda: False
    return metrics


def _update(what: str, metric: Any, outputs: Any, targets: Any) -> None:
    try:
        metric.update(outputs, targets)
    except Exception as error:
        raise ValueError(
            f"{what} can't take the first batch, outputs {describe(outputs)} and targets {describe(targets)}: "
            f"{type(error).__name__}: {error}. Check the metric's task and number of classes, and the dtype and shape "
            "of the targets"
        ) from error


@contextlib.contextmanager
def first_look(context: Context, data: Any, train_metrics: Any) -> Iterator[Callable[[StepOutput], None]]:
    """A function to be given what the first training step of a run computed, before its gradients.

    Args:
        context: The model with everything that computes and changes it.
        data: The training data.
        train_metrics: A `torchmetrics.MetricCollection`, or None. A copy of it is used.

    Yields:
        The function. It raises ValueError where the run can't go well, and warns where that is likely.
    """
    handles = _watch_batch_norm(context.model) if _ends_with_one_sample(data) else []

    def look(output: StepOutput) -> None:
        for handle in handles:
            handle.remove()
        outputs, targets = detached(output.outputs), output.targets
        if train_metrics is not None:
            metric_names(train_metrics, outputs, targets, "train_metrics", "train")
        if isinstance(outputs, Tensor) and outputs.is_floating_point() and isinstance(targets, Tensor):
            _look_at_outputs(context, outputs.float(), targets, data)

    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()


class _KeptOutputs:
    """Takes the place of metrics, and keeps what they would be given."""

    outputs: Any = None
    targets: Any = None

    def values(self, copy_state: bool = True) -> tuple[()]:
        """No metrics."""
        return ()

    def reset(self) -> None:
        """There is nothing to forget."""

    def update(self, outputs: Any, targets: Any) -> None:
        self.outputs, self.targets = outputs, targets

    def compute(self) -> dict[str, Any]:
        return {}


def _first_batch(data: Any) -> Any:
    """The first batch of data that can be looked at for free; None of others."""
    if type(data) in (list, tuple):
        return data[0]
    if not isinstance(data, DataLoader) or type(data).__iter__ is not DataLoader.__iter__:
        return None
    if isinstance(data.dataset, IterableDataset) or data.batch_sampler is None:
        return None
    method = getattr(data.multiprocessing_context or multiprocessing, "get_start_method", lambda: None)()
    if data.num_workers and method != "fork":
        return None
    indices = next(iter(data.batch_sampler), None)
    if indices is None:
        return None
    # A worker where there are workers: files that a data set opens in this process would be shared with them.
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {
            "num_workers": 1,
            "worker_init_fn": data.worker_init_fn,
            "multiprocessing_context": data.multiprocessing_context,
        }
    one = DataLoader(data.dataset, batch_sampler=[indices], collate_fn=data.collate_fn, **workers)
    return next(iter(one))


def _ends_with_one_sample(data: Any) -> bool:
    """Whether a loader is known to end with a batch of one sample, after larger ones."""
    if type(data) in (list, tuple):
        return batch_size(data[-1]) == 1 and (batch_size(data[0]) or 1) > 1
    sampler = getattr(data, "batch_sampler", None)
    if type(sampler) is not BatchSampler or sampler.drop_last or sampler.batch_size == 1:
        return False
    try:
        return len(sampler.sampler) % sampler.batch_size == 1  # type: ignore[arg-type]
    except TypeError:  # a sampler without a length
        return False


def _watch_batch_norm(model: nn.Module) -> list[Any]:
    """Let batch normalisation raise if a batch of one sample, which is to come, has one value for each channel."""

    def hook(name: str) -> Callable[[Any, Any], None]:
        def look(module: Any, inputs: Any) -> None:
            values = inputs[0]
            if module.training and values.numel() == values.shape[0] * values.shape[1]:
                raise BatchError(
                    f"train_data: its last batch has one sample, and {name or 'the model'} ({type(module).__name__}) "
                    "can compute no variance from one value; give the DataLoader drop_last=True or another batch_size"
                )

        return look

    return [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, _Norm)
    ]


def _look_at_outputs(context: Context, outputs: Tensor, targets: Tensor, data: Any) -> None:
    """Warn of outputs that the loss is not made for."""
    loss = base_of(context.loss)
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        return
    if loss is nn.CrossEntropyLoss and _sum_to_one(outputs):
        warnings.warn(
            "The model's outputs are probabilities already, and CrossEntropyLoss takes their softmax once more, which "
            "leaves hardly any gradient. Leave the softmax out of the model.",
            stacklevel=2,
        )
    if loss is nn.NLLLoss and bool((outputs > 0).any()):
        warnings.warn(
            "NLLLoss takes logarithms of probabilities, and some of the model's outputs are above 0. End the model "
            "with nn.LogSoftmax(1), or use CrossEntropyLoss.",
            stacklevel=2,
        )
    if loss is nn.BCEWithLogitsLoss and isinstance(_last_module(context.model), (nn.Sigmoid, nn.Softmax)):
        warnings.warn(
            "The model ends with probabilities, and BCEWithLogitsLoss takes their sigmoid once more. Leave the last "
            "layer out of the model, or use BCELoss.",
            stacklevel=2,
        )
    if loss in (nn.CrossEntropyLoss, nn.NLLLoss) and not targets.is_floating_point():
        _look_at_classes(outputs.shape[1], targets[targets != getattr(context.loss, "ignore_index", -100)], data)


def _look_at_classes(count: int, labels: Tensor, data: Any) -> None:
    """Warn of a head that has more outputs than there are classes."""
    classes = _classes_of(data)
    if classes is not None:
        if count > classes:
            warnings.warn(
                f"The model has {count} outputs, and the data set has {classes} classes. Give the head as many outputs "
                "as there are classes.",
                stacklevel=2,
            )
        return
    if labels.numel() >= FEWEST_LABELS and count >= FEWEST_CLASSES:
        highest = int(labels.max())
        if count >= CLASSES_TO_LABELS * (highest + 1):
            warnings.warn(
                f"The model has {count} outputs, and the highest label of the first batch is {highest}. If there are "
                "no further classes, give the head as many outputs as there are; if the data are sorted by class, "
                "shuffle them.",
                stacklevel=2,
            )


def _classes_of(data: Any) -> int | None:
    dataset = getattr(data, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    return len(classes) if isinstance(classes, (list, tuple)) and classes else None


def _sum_to_one(outputs: Tensor) -> bool:
    if not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return False
    return bool(((outputs.sum(1) - 1).abs() < 1e-2).all())


def _last_module(model: nn.Module) -> nn.Module:
    while children := list(model.children()):
        model = children[-1]
    return model

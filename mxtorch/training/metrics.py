"""Figures of the training loop that are collected without waiting for the device: metrics, the mean loss, the speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mxtorch._structure import describe
from mxtorch.engines.nonfinite import BadNumberError
from mxtorch.training.loss_weight import Weight, read_weights

# A call of torchmetrics costs about as much as a training step of a small network, however long its input is. Several
# batches are therefore joined for one call. The bounds keep what is held back small.
MOST_BUFFERED_BATCHES = 128
MOST_BUFFERED_ELEMENTS = 1_000_000
_JOINED_KINDS = ("torchmetrics.classification.", "torchmetrics.regression.", "torchmetrics.aggregation")


def as_collection(metrics: Any, argument: str) -> Any:
    """A `torchmetrics.MetricCollection` from a metric, a dictionary of them, or a collection; None from None.

    A dictionary may have functions of outputs and targets as well, and dictionaries by the key of an output.

    Raises:
        TypeError: Something else was given.
        ValueError: A metric is named `loss`.
    """
    if metrics is None:
        return None
    from torchmetrics import Metric, MetricCollection

    if isinstance(metrics, Metric):
        metrics = {type(metrics).__name__.lower(): metrics}
    given = metrics
    if not isinstance(metrics, MetricCollection) and isinstance(metrics, Mapping) and metrics:
        from mxtorch.training.metric_functions import as_metrics

        by_name = as_metrics(metrics)
        # Metrics of an output have states of their own, which a collection would take for shared ones.
        shares = by_name is not None and len(by_name) == len(metrics)
        metrics = None if by_name is None else MetricCollection(dict(by_name), compute_groups=shares)
    if not isinstance(metrics, MetricCollection):
        raise TypeError(
            f"{argument}: got {given!r}; give a torchmetrics Metric, a dict of them or of functions of outputs and "
            "targets, or a MetricCollection"
        )
    if "loss" in metrics:
        raise ValueError(f"{argument}: a metric named 'loss' would take the place of the loss; give it another name")
    return metrics


def as_figures(name: str, value: Any) -> dict[str, float]:
    """What a metric computed, as numbers with names; the elements of a tensor are numbered.

    Raises:
        ValueError: It is no number and no tensor, as of a metric that computes a curve.
    """
    if isinstance(value, (int, float)):
        return {name: float(value)}
    if isinstance(value, Tensor) and not value.is_complex():
        if value.numel() == 1:
            return {name: float(value)}
        return {f"{name}_{index}": float(item) for index, item in enumerate(value.flatten())}
    raise ValueError(
        f"metrics: {name.rpartition('/')[2]!r} computes a {describe(value)}, and the history holds numbers; leave it "
        "out of the Trainer's metrics and compute it from what predict returns, or give a metric of one number, such "
        "as AUROC in place of ROC"
    )


class MetricBuffer:
    """Collects outputs and targets, and updates the metrics with several batches at once.

    Batches are joined where the split into updates can't change the result: for torchmetrics' own metrics of
    classification and regression, and its sums and means, which accumulate over samples. Other metrics get each batch
    by itself: wrappers such as `Running` count updates, retrieval metrics group what comes with a batch, and a metric
    of one's own may do anything.

    Args:
        metrics: A `torchmetrics.MetricCollection`. It is reset: a pass that was interrupted may have left sums in it.
    """

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics
        self.metrics.reset()
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._shapes: tuple[torch.Size, torch.Size] | None = None  # of what is held back, without the first dimension
        self._elements = 0
        self._joins = _accumulate_over_samples(metrics)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch. It is held back if it can be joined with later ones; other batches update the metrics now."""
        joinable = self._joins and isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        if not (joinable and outputs.ndim and targets.ndim):
            self._flush()
            self.metrics.update(outputs, targets)
            return
        shapes = outputs.shape[1:], targets.shape[1:]
        if shapes != self._shapes:
            self._flush()
            self._shapes = shapes
        self._outputs.append(outputs.detach() if outputs.requires_grad else outputs)
        self._targets.append(targets)
        self._elements += outputs.numel()
        if len(self._outputs) >= MOST_BUFFERED_BATCHES or self._elements >= MOST_BUFFERED_ELEMENTS:
            self._flush()

    def compute(self, prefix: str) -> dict[str, float]:
        """All metrics as floats, named with a prefix; then start afresh.

        Raises:
            ValueError: The value of a metric is neither a number nor a tensor, as that of a curve.
        """
        self._flush()
        values: dict[str, float] = {}
        try:
            for name, value in self.metrics.compute().items():
                values |= as_figures(f"{prefix}/{name}", value)
        finally:
            self.metrics.reset()
        return values

    def state_dict(self) -> dict[str, Any]:
        """The states of all metrics, and the batches that are held back."""
        metrics = {
            name: {"count": metric._update_count, "states": {key: getattr(metric, key) for key in metric._defaults}}
            for name, metric in self._all_metrics()
        }
        return {"metrics": metrics, "outputs": list(self._outputs), "targets": list(self._targets)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, with tensors on the device of the metrics.

        Raises:
            ValueError: It is the state of other metrics.
        """
        metrics = dict(self._all_metrics())
        if list(metrics) != list(saved["metrics"]):
            raise ValueError(f"train_metrics: got {list(metrics)} instead of {list(saved['metrics'])}")
        device = next(iter(metrics.values())).device
        saved = tree_map_only(Tensor, lambda tensor: tensor.to(device), saved)
        for name, metric in metrics.items():
            metric._update_count, metric._computed = saved["metrics"][name]["count"], None
            for key, value in saved["metrics"][name]["states"].items():
                setattr(metric, key, value)
        self._outputs, self._targets = saved["outputs"], saved["targets"]
        self._elements = sum(outputs.numel() for outputs in self._outputs)
        self._shapes = (self._outputs[0].shape[1:], self._targets[0].shape[1:]) if self._outputs else None

    def _all_metrics(self) -> list[tuple[str, Any]]:
        """The metrics by name, those that wrappers hold too."""
        from torchmetrics import Metric

        return [(name, module) for name, module in self.metrics.named_modules() if isinstance(module, Metric)]

    def _flush(self) -> None:
        if self._outputs:
            outputs, targets = torch.cat(self._outputs), torch.cat(self._targets)
            self._outputs, self._targets, self._elements = [], [], 0
            self.metrics.update(outputs, targets)


def _accumulate_over_samples(metrics: Any) -> bool:
    """Whether metrics are torchmetrics' own that give the same however samples are split into updates."""
    from torchmetrics import MetricCollection

    if not isinstance(metrics, MetricCollection):
        return False
    kinds = [type(metric) for metric in metrics.values(copy_state=False)]
    # The methods' module, not the class's: a subclass of a user's that changes neither is as good.
    methods = [method for kind in kinds for method in (kind.update, kind.compute)]
    return all(method.__module__.startswith(_JOINED_KINDS) for method in methods)


class LossMeter:
    """The mean training loss over an epoch and since the last reading, and the speed.

    Each step's loss weighs what it is a mean of, by default as many samples as it has.

    Losses stay on their device until they are read, all at once.

    Args:
        first_step: The number of the first step, to name a step whose loss or gradient is not finite.

    Attributes:
        count: Steps of this epoch, skipped ones too.
        bad_step: The number of the first step that was found not to be finite.

    Example:
        >>> meter = LossMeter(first_step=1)
        >>> meter.add(torch.tensor(1.0), samples=30)
        >>> meter.add(torch.tensor(2.0), samples=10)
        >>> figures, bad_steps = meter.read()
        >>> figures["train/loss"]
        1.25
    """

    def __init__(self, first_step: int) -> None:
        self.count = 0
        self.bad_step: int | None = None
        self._next_step = first_step
        self._losses: list[Tensor] = []  # unread, as are the next three
        self._sizes: list[int] = []
        self._weights: list[Weight] = []
        self._bad: list[Tensor] = []
        self._epoch_sum = 0.0
        self._epoch_weight: float = 0
        self._epoch_samples = 0
        self._started = self._last_read = time.perf_counter()

    def add(self, loss: Tensor, samples: int, bad: Tensor | None = None, weight: Weight | None = None) -> None:
        """Add the loss of a step.

        Args:
            loss: A scalar tensor.
            samples: How many samples the step took.
            bad: A float tensor on the device, 1 where the gradient is not finite. Given for all steps or for none.
            weight: What the loss is a mean of; the samples when left out.
        """
        self._losses.append(loss)
        self._sizes.append(samples)
        self._weights.append(samples if weight is None else weight)
        if bad is not None:
            self._bad.append(bad)
        self.count += 1

    def skip(self) -> None:
        """Count a step that was skipped and has no loss."""
        self.count += 1
        self._next_step += 1

    def leave_out(self, seconds: float) -> None:
        """Take no account of time in which nothing was trained."""
        self._started += seconds
        self._last_read += seconds

    @property
    def unread(self) -> bool:
        """Whether steps were added since the last reading."""
        return bool(self._losses)

    def read(self, *, skips: bool = False) -> tuple[dict[str, float], int]:
        """Mean loss and samples a second since the last reading, and how many steps were bad.

        Args:
            skips: Leave bad steps out of the mean. Otherwise they raise.

        Raises:
            BadNumberError: A loss or gradient was not finite; `bad_step` is its number.
        """
        losses: list[float] = torch.stack(self._losses).tolist() if self._losses else []
        flags: list[float] = torch.stack(self._bad).tolist() if self._bad else [0.0] * len(losses)
        weights = read_weights(self._weights)
        bad = [
            bool(flag) or not (math.isfinite(loss) or weight == 0)
            for loss, flag, weight in zip(losses, flags, weights, strict=True)
        ]
        if any(bad) and not skips:
            offset = bad.index(True)
            self.bad_step = self._next_step + offset
            finite = math.isfinite(losses[offset])
            raise BadNumberError(
                "the loss is finite, its gradient is not" if finite else f"the loss is {losses[offset]}"
            )
        taken = [not is_bad for is_bad in bad]
        kept = [(loss, w) for loss, w, good in zip(losses, weights, taken, strict=True) if good and w != 0]
        weighted, weight_sum = sum(loss * weight for loss, weight in kept), sum(weight for _, weight in kept)
        now = time.perf_counter()
        figures = {
            "train/loss": weighted / weight_sum if weight_sum else math.nan,
            "samples_per_second": sum(self._sizes) / max(now - self._last_read, 1e-9),
        }
        self._epoch_sum += weighted
        self._epoch_weight += weight_sum
        self._epoch_samples += sum(size for size, good in zip(self._sizes, taken, strict=True) if good)
        self._next_step += len(losses)
        self._losses, self._sizes, self._weights, self._bad, self._last_read = [], [], [], [], now
        return figures, sum(bad)

    def finish(self) -> dict[str, float]:
        """Mean loss and samples a second of the whole epoch. Every step must have been read."""
        assert not self.unread
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "train/loss": self._epoch_sum / self._epoch_weight if self._epoch_weight else math.nan,
            "samples_per_second": self._epoch_samples / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Sums, unread losses, and seconds since the epoch began and since the last reading."""
        now = time.perf_counter()
        return {
            "count": self.count,
            "next_step": self._next_step,
            "losses": torch.stack(self._losses) if self._losses else None,
            "bad": torch.stack(self._bad) if self._bad else None,
            "sizes": list(self._sizes),
            "weights": read_weights(self._weights),
            "sum": self._epoch_sum,
            "weight": self._epoch_weight,
            "samples": self._epoch_samples,
            "elapsed": now - self._started,
            "since_read": now - self._last_read,
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was called.

        Args:
            saved: What it gave.
            device: Where the losses that are unread go.

        Raises:
            ValueError: It is malformed.
        """
        # Checkpoints of before losses had weights other than samples lack these two.
        saved = {"weights": saved["sizes"], "weight": saved["samples"]} | saved
        kinds = dict.fromkeys(("count", "next_step", "samples"), int)
        numbers = kinds | dict.fromkeys(("sum", "weight", "elapsed", "since_read"), float)
        count = 0 if saved["losses"] is None else len(saved["losses"])
        flags = count if saved["bad"] is None else len(saved["bad"])
        if any(type(saved[name]) not in (kind, int) for name, kind in numbers.items()):
            raise ValueError("the sums of losses are malformed")
        if not len(saved["sizes"]) == count == flags or any(type(size) is not int for size in saved["sizes"]):
            raise ValueError(f"there are {count} losses and sizes {saved['sizes']!r}")
        if len(saved["weights"]) != count or any(type(weight) not in (int, float) for weight in saved["weights"]):
            raise ValueError(f"there are {count} losses and weights {saved['weights']!r}")
        now = time.perf_counter()
        self.count, self._next_step = saved["count"], saved["next_step"]
        self._losses = [] if saved["losses"] is None else list(saved["losses"].to(device).unbind())
        self._bad = [] if saved["bad"] is None else list(saved["bad"].to(device).unbind())
        self._sizes, self._weights = list(saved["sizes"]), list(saved["weights"])
        self._epoch_sum, self._epoch_weight, self._epoch_samples = saved["sum"], saved["weight"], saved["samples"]
        self._started, self._last_read = now - saved["elapsed"], now - saved["since_read"]

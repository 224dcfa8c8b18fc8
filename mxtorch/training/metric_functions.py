"""Plain functions of outputs and targets as metrics, and metrics of one of several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from mxtorch._structure import concatenate, detached


class FunctionMetric(Metric):
    """A function of all outputs and all targets of a pass, joined along their first dimension.

    A root of a mean, a rank or a median over the whole data is not the mean of those of batches, so outputs and targets
    are kept, on their device, until the pass is over.

    Args:
        function: `function(outputs, targets)` gives a number or a tensor. Outputs and targets may be structures of
            tensors.

    Example:
        >>> import torch
        >>> rmse = FunctionMetric(lambda outputs, targets: (outputs - targets).square().mean().sqrt())
        >>> rmse.update(torch.zeros(3), torch.full((3,), 2.0))
        >>> rmse.update(torch.zeros(1), torch.full((1,), 6.0))
        >>> round(float(rmse.compute()), 3)
        3.464
    """

    full_state_update = False
    outputs: list[Any]
    targets: list[Any]

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.add_state("outputs", default=[], dist_reduce_fx=None)
        self.add_state("targets", default=[], dist_reduce_fx=None)

    def update(self, outputs: Any, targets: Any) -> None:
        """Keep a batch."""
        self.outputs.append(detached(outputs))
        self.targets.append(detached(targets))

    def compute(self) -> Any:
        """What the function gives for all of the batches."""
        return self.function(concatenate(self.outputs), concatenate(self.targets))


class OutputMetric(Metric):
    """A metric of one of several outputs.

    Args:
        metric: Any metric.
        name: The key of the output, and of its targets; or the index of both.

    Example:
        >>> import torch
        >>> from torchmetrics import MeanMetric, regression
        >>> metric = OutputMetric(regression.MeanSquaredError(), "age")
        >>> metric.update({"age": torch.ones(2), "sex": torch.ones(2)}, {"age": torch.zeros(2)})
        >>> float(metric.compute())
        1.0
    """

    full_state_update = False

    def __init__(self, metric: Metric, name: str | int) -> None:
        super().__init__()
        self.metric = metric
        self.name = name

    def update(self, outputs: Any, targets: Any) -> None:
        """Give the metric its part of a batch."""
        self.metric.update(self._part(outputs, "outputs"), self._part(targets, "targets"))

    def compute(self) -> Any:
        """What the metric computes."""
        return self.metric.compute()

    def reset(self) -> None:
        """Reset the metric."""
        super().reset()
        self.metric.reset()

    def _part(self, value: Any, what: str) -> Any:
        if isinstance(value, Tensor):
            raise ValueError(f"the {what} are one tensor, and the metric is for {self.name!r} of several")
        if isinstance(self.name, int) or isinstance(value, Mapping):
            return value[self.name]
        return getattr(value, self.name)


def as_metrics(given: Mapping[Any, Any]) -> dict[str, Metric] | None:
    """The metrics of a dictionary by name: functions wrapped, those of an output named `<output>_<metric>`.

    Args:
        given: Metrics and functions by name; or dictionaries of these by the key (or index) of an output.

    Returns:
        None where something else is among them.
    """
    metrics: dict[str, Metric] = {}
    for name, metric in given.items():
        if isinstance(metric, Mapping) and isinstance(name, (str, int)) and metric:
            inner = as_metrics(metric)
            if inner is None:
                return None
            metrics |= {f"{name}_{key}": OutputMetric(value, name) for key, value in inner.items()}
        elif isinstance(metric, Metric) and isinstance(name, str):
            metrics[name] = metric
        elif callable(metric) and not isinstance(metric, type) and isinstance(name, str):
            metrics[name] = FunctionMetric(metric)
        else:
            return None
    return metrics

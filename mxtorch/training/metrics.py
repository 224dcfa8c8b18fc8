"""torchmetrics in the loop: named, on the device, and cheap enough to update in every training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A call of torchmetrics costs about as much as a small network's training step, however long its input is. Batches
# are therefore handed over several at a time, and never so many that they would hold much memory.
MOST_BUFFERED_BATCHES = 32
MOST_BUFFERED_ELEMENTS = 1_000_000


def as_collection(metrics: Any, argument: str) -> Any:
    """A `torchmetrics.MetricCollection` from a metric, a dictionary of them, or a collection; None from None.

    Raises:
        TypeError: Something else was given.
    """
    if metrics is None:
        return None
    from torchmetrics import Metric, MetricCollection

    if isinstance(metrics, MetricCollection):
        return metrics
    if isinstance(metrics, Metric):
        return MetricCollection({type(metrics).__name__.lower(): metrics})
    if isinstance(metrics, dict) and metrics and all(isinstance(metric, Metric) for metric in metrics.values()):
        return MetricCollection(dict(metrics))
    raise TypeError(f"{argument}: got {metrics!r}; give a torchmetrics Metric, a dict of them or a MetricCollection")


class MetricBuffer:
    """Collects outputs and targets, and updates the metrics with several batches at once.

    Metrics of torchmetrics accumulate sums over samples, so the split into updates does not matter to them.
    """

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics
        self.metrics.reset()  # of a pass that was broken off
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._elements = 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch: kept back when it can be joined with the next ones, handed on at once otherwise."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.ndim and targets.ndim):
            self._flush()
            self.metrics.update(outputs, targets)
            return
        if self._outputs and (
            outputs.shape[1:] != self._outputs[0].shape[1:] or targets.shape[1:] != self._targets[0].shape[1:]
        ):
            self._flush()
        self._outputs.append(outputs.detach())
        self._targets.append(targets)
        self._elements += outputs.numel()
        if len(self._outputs) >= MOST_BUFFERED_BATCHES or self._elements >= MOST_BUFFERED_ELEMENTS:
            self._flush()

    def compute(self, prefix: str) -> dict[str, float]:
        """All metrics as floats, named with a prefix; then start afresh."""
        self._flush()
        values = {}
        for name, value in self.metrics.compute().items():
            if value.numel() == 1:
                values[f"{prefix}/{name}"] = float(value)
            else:
                values |= {f"{prefix}/{name}_{index}": float(item) for index, item in enumerate(value.flatten())}
        self.metrics.reset()
        return values

    def state_dict(self) -> dict[str, Any]:
        """The states of all metrics, and the batches that they have not seen yet."""
        metrics = {
            name: {"count": metric._update_count, "states": {key: getattr(metric, key) for key in metric._defaults}}
            for name, metric in self._all_metrics()
        }
        return {"metrics": metrics, "outputs": list(self._outputs), "targets": list(self._targets)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            ValueError: It is of other metrics.
        """
        metrics = dict(self._all_metrics())
        if list(metrics) != list(saved["metrics"]):
            raise ValueError(f"train_metrics: got {list(metrics)} instead of {list(saved['metrics'])}")
        for name, metric in metrics.items():
            metric._update_count, metric._computed = saved["metrics"][name]["count"], None
            for key, value in saved["metrics"][name]["states"].items():
                setattr(metric, key, _to(value, metric.device))
        device = next(iter(metrics.values())).device
        self._outputs, self._targets = _to(saved["outputs"], device), _to(saved["targets"], device)
        self._elements = sum(outputs.numel() for outputs in self._outputs)

    def _all_metrics(self) -> list[tuple[str, Any]]:
        """With those that wrappers hold."""
        from torchmetrics import Metric

        return [(name, module) for name, module in self.metrics.named_modules() if isinstance(module, Metric)]

    def _flush(self) -> None:
        if self._outputs:
            outputs, targets = torch.cat(self._outputs), torch.cat(self._targets)
            self._outputs, self._targets, self._elements = [], [], 0
            self.metrics.update(outputs, targets)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value

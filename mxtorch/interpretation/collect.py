"""One pass over data: outputs, losses, and the inputs of the samples that lost most."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mxtorch._checks import check_data, check_integer
from mxtorch._structure import describe, to_host
from mxtorch.interpretation.result import Interpretation
from mxtorch.training.modes import preserved_modes
from mxtorch.training.supervised import batch_size, explain_first_batch, split_batch


@torch.no_grad()
def interpret(trainer: Any, data: Iterable[Any], classes: Sequence[str] | None, pictures: int) -> Interpretation:
    """See `Trainer.interpret`."""
    check_data(data, "data", passes=1)
    check_integer(pictures, "pictures", at_least=0)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    worst: list[tuple[float, int, Tensor]] = []  # a heap, the least of the worst first; the index breaks ties
    count = 0
    with preserved_modes(trainer.model):
        trainer.model.eval()
        for host_batch in data:
            batch = trainer.engine.move(host_batch)
            try:
                with trainer.engine.autocast():
                    given = trainer.prediction_step(batch)
                logits, labels = _logits(given), _labels(host_batch)
                losses = F.cross_entropy(logits, labels, reduction="none")
            except Exception as error:
                if not outputs:
                    explain_first_batch(error, batch, "prediction_step")
                raise
            for index, (loss, picture) in enumerate(zip(losses.tolist(), _pictures(host_batch), strict=True)):
                if picture is not None and pictures:
                    push = heapq.heappush if len(worst) < pictures else heapq.heappushpop
                    push(worst, (loss, -(count + index), picture.detach().cpu().clone()))
            outputs.append(logits)
            targets.append(labels)
            count += len(labels)
    if not outputs:
        raise ValueError("data: got a loader that yields no batches; give it at least one")
    result = Interpretation(
        torch.cat(outputs).softmax(1),
        torch.cat(targets),
        _names(trainer, data, classes, outputs[0].shape[1]),
        {-index: picture for _, index, picture in sorted(worst, key=lambda entry: (-entry[0], -entry[1]))},
    )
    trainer.callbacks.call("on_interpreted", trainer, result)
    return result


def _logits(outputs: Any) -> Tensor:
    host = to_host(outputs)
    if not isinstance(host, Tensor) or host.ndim != 2 or host.shape[1] < 2:
        raise ValueError(f"the outputs are a {describe(host)}; interpret takes logits [N, classes]")
    return host


def _labels(batch: Any) -> Tensor:
    targets = to_host(split_batch(batch).targets)
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(f"the targets are a {describe(targets)}; interpret takes class numbers [N]")
    return targets.long()


def _pictures(batch: Any) -> Iterable[Tensor | None]:
    """The samples' pictures, where the first input is a batch of pictures."""
    example = split_batch(batch)
    inputs = example.inputs[0] if example.inputs else None
    if isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3):
        return inputs
    return [None] * (batch_size(batch) or 0)


def _names(trainer: Any, data: Any, classes: Sequence[str] | None, count: int) -> list[str]:
    """Names of the classes: given, of the data set, of the model, or their numbers."""
    found = classes
    if found is None:
        found = getattr(getattr(data, "dataset", None), "classes", None) or getattr(trainer.model, "classes", None)
    if found is None or (classes is None and len(found) != count):
        return [str(index) for index in range(count)]
    if len(found) != count:
        raise ValueError(f"classes: got {len(found)} names, but the model has {count} outputs")
    return [str(name) for name in found]

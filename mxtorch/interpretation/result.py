"""The result of `Trainer.interpret`: figures, tables as lists of rows, and plots."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxtorch.checkpointing.file import atomic_text
from mxtorch.interpretation import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = plots.Row

CALIBRATION_BINS = 10


@dataclass(frozen=True, repr=False)
class Interpretation:
    """The predictions of a classifier on data with targets. `print` shows the main figures.

    Attributes:
        probabilities: The predicted probabilities, float [N, classes], on the CPU.
        targets: The class numbers, int64 [N].
        classes: The names of the classes.
        pictures: The inputs with the highest losses, by the number of their sample, the highest loss first.
        samples: The number of each sample in the data, int64 [N]; None if no sample was left out.
        ignored: The number of samples that were left out, because the loss ignores their label.
        loss: The trainer's loss over all samples, including class weights and label smoothing. It equals `val/loss` of
            `evaluate`. None if it is not torch's mean cross-entropy.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
        >>> result = Interpretation(probabilities, torch.tensor([0, 1, 1]), ["cat", "dog"])
        >>> result.confusion.tolist()
        [[1, 0], [1, 1]]
        >>> result.most_confused()
        [{'true': 'dog', 'predicted': 'cat', 'times': 1, 'part': 0.5}]
    """

    probabilities: Tensor
    targets: Tensor
    classes: list[str]
    pictures: dict[int, Tensor] = field(default_factory=dict)
    samples: Tensor | None = None
    ignored: int = 0
    loss: float | None = None

    @property
    def predictions(self) -> Tensor:
        """The most probable class of each sample, int64 [N]."""
        return self.probabilities.argmax(1)

    @property
    def losses(self) -> Tensor:
        """The cross-entropy of each sample, float [N], without class weights and label smoothing."""
        chosen = self.probabilities.gather(1, self.targets[:, None])[:, 0]
        return -chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()

    @property
    def accuracy(self) -> float:
        """The part of the samples whose most probable class is the true class."""
        return float((self.predictions == self.targets).double().mean())

    @property
    def confusion(self) -> Tensor:
        """Numbers of samples, int64 [classes, classes]: a row for each true class, a column for each predicted one."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(self.predictions, self.targets, num_classes=len(self.classes))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error over ten bins (Guo et al. 2017, arXiv 1706.04599); 0 is the best value."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        return float(
            multiclass_calibration_error(
                self.probabilities, self.targets, num_classes=len(self.classes), n_bins=CALIBRATION_BINS
            )
        )

    def per_class(self) -> list[Row]:
        """A row for each class: `class`, `samples`, `precision`, `recall`, `f1`; NaN where a denominator is 0."""
        counts = self.confusion.double()
        right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        names = ("class", "samples", "precision", "recall", "f1")
        figures = (right / predicted, right / true, 2 * right / (true + predicted))
        columns = (self.classes, self.confusion.sum(1).tolist(), *(column.tolist() for column in figures))
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _worst_classes(self) -> list[Row]:
        """The rows of classes with samples, the lowest F1 first."""
        return sorted((row for row in self.per_class() if row["samples"]), key=lambda row: row["f1"])

    def most_confused(self, count: int = 10) -> list[Row]:
        """The pairs of classes confused most often: `true`, `predicted`, `times`, `part` of the true class.

        Args:
            count: The largest number of rows.
        """
        counts, names = self.confusion, self.classes
        totals = counts.sum(1).tolist()
        wrong = [(int(counts[i, j]), i, j) for i, j in (counts - counts.diag().diag()).nonzero().tolist()]
        return [
            {"true": names[i], "predicted": names[j], "times": times, "part": times / totals[i]}
            for times, i, j in sorted(wrong, key=lambda entry: (-entry[0], entry[1:]))[:count]
        ]

    def top_losses(self, count: int = 12) -> list[Row]:
        """The samples with the highest losses, the highest loss first.

        Each row has `sample` (the number in the data), `loss` (the cross-entropy), `true`, `predicted` and the
        `probability` of the predicted class.

        Args:
            count: The largest number of rows.
        """
        return self._loss_rows(self.losses.argsort(descending=True, stable=True)[:count].tolist())

    def _loss_rows(self, places: Iterable[int]) -> list[Row]:
        """A row for each place in `probabilities`."""
        losses, predictions, numbers = self.losses, self.predictions, self._sample_numbers()
        return [
            {
                "sample": int(numbers[index]),
                "loss": float(losses[index]),
                "true": self.classes[int(self.targets[index])],
                "predicted": self.classes[int(predictions[index])],
                "probability": float(self.probabilities[index].max()),
            }
            for index in places
        ]

    def calibration(self) -> list[Row]:
        """A row for each of ten bins of the predicted probability, if the bin has samples.

        Each row has `low`, `high`, `samples`, the mean `probability`, and the `accuracy`.
        """
        sure, right = self.probabilities.max(1).values.double(), (self.predictions == self.targets).double()
        bins = (sure * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
        rows: list[Row] = []
        for index in range(CALIBRATION_BINS):
            inside = bins == index
            if inside.any():
                low, high = index / CALIBRATION_BINS, (index + 1) / CALIBRATION_BINS
                figures = {"probability": float(sure[inside].mean()), "accuracy": float(right[inside].mean())}
                rows.append({"low": low, "high": high, "samples": int(inside.sum()), **figures})
        return rows

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write `per_class.csv`, `most_confused.csv`, `top_losses.csv` and `calibration.csv` into a folder.

        Args:
            folder: The folder; it is created if it does not exist.

        Returns:
            The paths of the files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name in ("per_class", "most_confused", "top_losses", "calibration"):
            rows = getattr(self, name)()
            with atomic_text(folder / f"{name}.csv") as file:
                if rows:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
            written.append(folder / f"{name}.csv")
        return written

    def plot_confusion(self, axes: Axes | None = None) -> Axes:
        """Draw the confusion matrix. Colours show parts of the true class, numbers show samples."""
        return plots.confusion(self.confusion, self.classes, self.accuracy, axes)

    def plot_per_class(self, axes: Axes | None = None) -> Axes:
        """Draw precision and recall of each class, the lowest F1 first."""
        return plots.per_class(self._worst_classes(), axes)

    def plot_calibration(self, axes: Axes | None = None) -> Axes:
        """Draw accuracy over predicted probability. On the diagonal, the accuracy equals the predicted probability."""
        return plots.calibration(self.calibration(), self.calibration_error, axes)

    def plot_top_losses(self) -> Figure:
        """One figure with the pictures of the highest losses.

        Raises:
            ValueError: The inputs were not pictures, or no pictures were kept.
        """
        places = {int(sample): place for place, sample in enumerate(self._sample_numbers())}
        return plots.top_losses(self._loss_rows(places[sample] for sample in self.pictures), self.pictures)

    def _sample_numbers(self) -> Tensor:
        return torch.arange(len(self.targets)) if self.samples is None else self.samples

    def plot(self) -> Figure:
        """One figure with the confusion matrix, precision and recall, and calibration."""
        figure, (left, middle, right) = plots.overview(len(self.classes))
        self.plot_confusion(left)
        self.plot_per_class(middle)
        self.plot_calibration(right)
        return figure

    def __str__(self) -> str:
        cross_entropy = float(self.losses.mean())
        figures = f"cross-entropy {cross_entropy:.4f}"
        if self.loss is not None:
            figures = f"loss {self.loss:.4f}"
            if not math.isclose(self.loss, cross_entropy, rel_tol=1e-4, abs_tol=1e-6):
                figures += f" (with class weights or label smoothing; cross-entropy {cross_entropy:.4f})"
        lines = [
            f"{len(self.targets)} samples of {len(self.classes)} classes: accuracy {self.accuracy:.4f}, {figures}, "
            f"calibration error {self.calibration_error:.4f}"
        ]
        if self.ignored:
            lines.append(f"  {self.ignored} samples left out, because the loss ignores their label")
        lines += [
            f"  {row['class']}: precision {row['precision']:.3f}, recall {row['recall']:.3f} of {row['samples']}"
            for row in self._worst_classes()[:3]
        ]
        lines += [
            f"  {row['true']} taken for {row['predicted']}: {row['times']} times ({row['part']:.0%})"
            for row in self.most_confused(3)
        ]
        return "\n".join(lines)

    __repr__ = __str__

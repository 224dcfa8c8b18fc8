"""What `Trainer.interpret` returns: figures as rows, and their pictures."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

CALIBRATION_BINS = 10


@dataclass(frozen=True, repr=False)
class Interpretation:
    """Predictions of a classification, and what they say. Printing it gives the main figures.

    Attributes:
        probabilities: [N, classes], on the CPU.
        targets: The class numbers [N].
        classes: The names of the classes.
        pictures: The inputs with the highest losses, by the number of the sample, the worst first.
    """

    probabilities: Tensor
    targets: Tensor
    classes: list[str]
    pictures: dict[int, Tensor] = field(default_factory=dict)

    @property
    def predictions(self) -> Tensor:
        """The most probable class of each sample [N]."""
        return self.probabilities.argmax(1)

    @property
    def losses(self) -> Tensor:
        """The cross-entropy of each sample [N], without weights and label smoothing."""
        chosen = self.probabilities.gather(1, self.targets[:, None])[:, 0]
        return -chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()

    @property
    def accuracy(self) -> float:
        """The part of samples whose most probable class is the right one."""
        return float((self.predictions == self.targets).double().mean())

    @property
    def confusion(self) -> Tensor:
        """Counts [classes, classes]: rows are true classes, columns predicted ones."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(self.predictions, self.targets, num_classes=len(self.classes))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error (Guo et al. 2017, arXiv 1706.04599), over ten bins: 0 is perfect."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        return float(
            multiclass_calibration_error(
                self.probabilities, self.targets, num_classes=len(self.classes), n_bins=CALIBRATION_BINS
            )
        )

    def per_class(self) -> list[Row]:
        """For each class: `class`, `samples`, `precision`, `recall`, `f1`; NaN where they have no meaning."""
        counts = self.confusion.double()
        right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        rows: list[Row] = []
        for index, name in enumerate(self.classes):
            precision, recall = float(right[index] / predicted[index]), float(right[index] / true[index])
            f1 = float(2 * right[index] / (true[index] + predicted[index]))
            rows.append(
                {"class": name, "samples": int(true[index]), "precision": precision, "recall": recall, "f1": f1}
            )
        return rows

    def most_confused(self, count: int = 10) -> list[Row]:
        """The pairs that are taken for each other most: `true`, `predicted`, `times`, `part` of the true class."""
        counts = self.confusion
        totals = counts.sum(1)
        wrong = [
            (int(counts[true, predicted]), true, predicted)
            for true, predicted in (counts - counts.diag().diag()).nonzero().tolist()
        ]
        return [
            {
                "true": self.classes[true],
                "predicted": self.classes[predicted],
                "times": times,
                "part": times / int(totals[true]),
            }
            for times, true, predicted in sorted(wrong, key=lambda entry: (-entry[0], entry[1:]))[:count]
        ]

    def top_losses(self, count: int = 12) -> list[Row]:
        """The samples that lost most: `sample` (its number), `loss`, `true`, `predicted`, `probability` of that."""
        losses, predictions = self.losses, self.predictions
        order = losses.argsort(descending=True, stable=True)[:count].tolist()
        return [
            {
                "sample": index,
                "loss": float(losses[index]),
                "true": self.classes[int(self.targets[index])],
                "predicted": self.classes[int(predictions[index])],
                "probability": float(self.probabilities[index].max()),
            }
            for index in order
        ]

    def calibration(self) -> list[Row]:
        """For ten bins of the predicted probability: `low`, `high`, `samples`, mean `probability`, `accuracy`."""
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
        """Write `per_class.csv`, `most_confused.csv`, `top_losses.csv` and `calibration.csv` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name in ("per_class", "most_confused", "top_losses", "calibration"):
            rows = getattr(self, name)()
            with open(folder / f"{name}.csv", "w", newline="") as file:
                if rows:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
            written.append(folder / f"{name}.csv")
        return written

    def plot_confusion(self, axes: Axes | None = None) -> Axes:
        """Draw the confusion matrix, each row in parts of its true class."""
        from mxtorch.interpretation import plots

        return plots.confusion(self, axes)

    def plot_per_class(self, axes: Axes | None = None) -> Axes:
        """Draw precision and recall of each class, the worst first."""
        from mxtorch.interpretation import plots

        return plots.per_class(self, axes)

    def plot_calibration(self, axes: Axes | None = None) -> Axes:
        """Draw accuracy over predicted probability; on the diagonal a network is as often right as it says."""
        from mxtorch.interpretation import plots

        return plots.calibration(self, axes)

    def plot_top_losses(self) -> Figure:
        """A sheet of the pictures that lost most.

        Raises:
            ValueError: The inputs were no pictures, or none were kept.
        """
        from mxtorch.interpretation import plots

        return plots.top_losses(self)

    def plot(self) -> Figure:
        """One figure: confusion, precision and recall, calibration."""
        from mxtorch.interpretation import plots

        return plots.overview(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.targets)} samples of {len(self.classes)} classes: accuracy {self.accuracy:.4f}, "
            f"loss {float(self.losses.mean()):.4f}, calibration error {self.calibration_error:.4f}"
        ]
        worst = sorted((row for row in self.per_class() if row["samples"]), key=lambda row: row["f1"])[:3]
        lines += [
            f"  {row['class']}: precision {row['precision']:.3f}, recall {row['recall']:.3f} of {row['samples']}"
            for row in worst
        ]
        lines += [
            f"  {row['true']} taken for {row['predicted']}: {row['times']} times ({row['part']:.0%})"
            for row in self.most_confused(3)
        ]
        return "\n".join(lines)

    __repr__ = __str__

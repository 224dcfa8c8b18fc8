"""What is built on the loop: fine-tuning, looking at a result, taking it elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from mxtorch import schedules
from mxtorch.fine_tuning import plan
from mxtorch.fine_tuning.layers import DEFAULT_DECAY
from mxtorch.fine_tuning.plan import FineTuning
from mxtorch.interpretation import Interpretation
from mxtorch.interpretation.collect import interpret

if TYPE_CHECKING:
    from mxtorch.trainer import Trainer


class Applications:
    """Methods of a trainer that use its loop from outside; each is a call into a package of its own.

    Attributes:
        fine_tuning: What the last `fine_tune` did; None before.
    """

    fine_tuning: FineTuning | None = None

    def fine_tune(
        self,
        train_data: Iterable[Any],
        val_data: Iterable[Any] | None = None,
        *,
        epochs: int,
        freeze_epochs: int = 1,
        lr: float | Sequence[float] | None = None,
        head: str | nn.Module | None = None,
        groups: Mapping[str, Any] | Sequence[Any] | None = None,
        decay: float = DEFAULT_DECAY,
        train_norms: bool | None = None,
        schedule: str | schedules.Schedule = "one_cycle",
        cache: plan.Cache = "auto",
        views: int = 1,
        half: bool = False,
    ) -> FineTuning:
        """Train the head on the frozen network, then all layers, at rates found for each; see docs/fine-tuning.md.

        While the network is frozen, what reaches its head is computed once for each sample and kept, where the data
        allow it; losses, order and random numbers are as without. Rates fall from the head to the input.

        Args:
            train_data: As for `fit`. A DataLoader without random augmentation lets features be kept.
            val_data: The same.
            epochs: Passes with all layers, after the first phase; 0 trains the head alone.
            freeze_epochs: Passes with the head alone; 0 trains all layers from the start.
            lr: The head's rate, one for both phases or one for each; None finds them, and tells.
            head: The new module, or its name, where the model is not of the zoo.
            groups: Layer groups from the input to the head, by their modules or their names; in place of `head`.
            decay: The rate of a layer group over that of the next. An optimizer whose groups have rates of their own
                keeps those.
            train_norms: Whether the second phase trains the batch normalisation before the head, with its running
                statistics. By default it does only where there was no first phase: the statistics of a few small
                batches are worse than those of the data that the network comes from.
            schedule: Of each phase.
            cache: `"auto"` keeps features in up to a third of the free memory, else in a temporary file, and tells
                where that can't be; `"memory"`, `"file"`, a folder or True ask for it; False does without; or a
                `FeatureCache`, whose features are kept afterwards.
            views: How many readings of each sample are kept, for data with random augmentation.
            half: Keep features in float16.

        Returns:
            Rates, notes, and the time line, with the history.

        Raises:
            ValueError: An argument is off; nothing can be frozen, or is left to train; groups that leave parameters
                out; features were asked for and can't be kept.
        """
        self.fine_tuning = plan.fine_tune(
            cast("Trainer", self),
            train_data,
            val_data,
            epochs=epochs,
            freeze_epochs=freeze_epochs,
            lr=lr,
            head=head,
            groups=groups,
            decay=decay,
            train_norms=train_norms,
            schedule=schedule,
            cache=cache,
            views=views,
            half=half,
        )
        return self.fine_tuning

    def interpret(
        self, val_data: Iterable[Any], *, classes: Sequence[str] | None = None, pictures: int = 12
    ) -> Interpretation:
        """Look at a classifier's predictions: confusion, precision and recall, top losses, calibration.

        Plots and rows are in what is returned; with `log_dir` they go to TensorBoard as well.

        Args:
            val_data: Batches with class numbers as targets.
            classes: Names; by default those of the data set (`.classes`) or of the model, else numbers.
            pictures: How many inputs with the highest losses are kept, for a sheet of pictures.

        Raises:
            ValueError: The outputs are not [N, classes], the targets no class numbers; a wrong number of names.
        """
        trainer = cast("Trainer", self)
        result = interpret(trainer, val_data, classes=classes, pictures=pictures)
        trainer.callbacks.call("on_interpreted", trainer, result)
        return result

    def export(
        self,
        path: str | Path,
        val_data: Iterable[Any] | None = None,
        *,
        train_data: Iterable[Any] | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Any = None,
        example: Tensor | None = None,
        about: str = "",
    ) -> Path:
        """Write the model for use without its training code, and a model card in Markdown beside it.

        `mxtorch.exporting.load(path).predict("picture.jpg")` opens it; class names and preprocessing are in the file.

        Args:
            path: `.safetensors` (weights), `.pt2` (torch.export) or `.onnx` (needs the extra `onnx`).
            val_data: Tells class names (`.classes` of its data set), preprocessing (its `.transform`), and what an
                input looks like.
            train_data: For the card.
            classes: Names, where the data do not have them.
            preprocessing: A transform of torchvision or a `model_zoo.Preprocessing`, likewise.
            example: A batch of inputs, for models that are not of the zoo where there are no `val_data`.
            about: A paragraph for the card.

        Raises:
            ValueError: The ending is unknown, the model can't be exported, the file's outputs are not the model's, a
                transform can't be described, a wrong number of names.
        """
        from mxtorch.exporting import export  # it imports the zoo, which is imported on first use

        return export(
            cast("Trainer", self),
            path,
            val_data,
            train_data=train_data,
            classes=classes,
            preprocessing=preprocessing,
            example=example,
            about=about,
        )

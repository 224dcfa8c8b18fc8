"""Whether a figure of the history improves by falling or by rising: one rule for all that follow a figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from mxtorch._checks import closest

Direction = Literal["min", "max"]
Mode = Literal["auto", "min", "max"]

# Whole words, and two neighbouring words as one ("cross_entropy").
_FALLING = frozenset(
    (
        *("loss", "losses", "error", "errors", "err", "mae", "mse", "mape", "smape", "msle", "rmse", "rmsle", "nll"),
        *("kl", "js", "divergence", "perplexity", "ppl", "bpc", "bpb", "distance", "dist", "wer", "cer", "mer", "ter"),
        *("eer", "der", "fid", "kid", "lpips", "ece", "mce", "brier", "hausdorff", "chamfer", "wasserstein", "emd"),
        *("deviance", "cost", "regret", "misclassification", "crossentropy", "bce", "huber", "fpr", "fnr", "far"),
        *("frr", "hammingdistance", "ergas"),
    )
)
_RISING = frozenset(
    (
        *("accuracy", "acc", "f1", "f2", "fbeta", "auroc", "auc", "rocauc", "ap", "map", "aupr", "auprc", "prauc"),
        *("precision", "recall", "sensitivity", "specificity", "iou", "miou", "jaccard", "dice", "bleu", "sacrebleu"),
        *("rouge", "meteor", "cider", "chrf", "r2", "pearson", "spearman", "kendall", "kappa", "mcc", "matthews"),
        *("ndcg", "mrr", "hit", "hits", "top", "psnr", "ssim", "snr", "sdr", "sisdr", "sisnr", "pesq", "stoi"),
        *("explainedvariance", "similarity", "likelihood", "reward", "tpr", "tnr", "npv", "ppv", "correct"),
    )
)
_NEGATIONS = frozenset(("neg", "negative", "minus"))


def check_mode(mode: Any) -> Mode:
    """`mode`, if it is "auto", "min" or "max"; else a ValueError."""
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"mode: got {mode!r}{closest(str(mode), ('auto', 'min', 'max'))}")
    known: Mode = mode
    return known


def direction(monitor: str, mode: Mode, metrics: Any = None, train_metrics: Any = None) -> Direction:
    """Whether lower (`"min"`) or higher (`"max"`) is better.

    Args:
        monitor: A column of the history, as `"val/accuracy"`.
        mode: `"min"` and `"max"` decide; `"auto"` asks the metric of that name for its `higher_is_better`, then the
            words of the name.
        metrics: The metrics of validation, a `torchmetrics.MetricCollection`, or None.
        train_metrics: The metrics of training, likewise.

    Raises:
        ValueError: Neither the metric nor the name tells.

    Example:
        >>> direction("val/loss", "auto"), direction("val/gloss_f1", "auto"), direction("val/nll", "auto")
        ('min', 'max', 'min')
    """
    found = known_direction(monitor, metrics, train_metrics) if mode == "auto" else mode
    if found is None:
        known = ["train/loss", "val/loss", *(f"val/{name}" for name in metrics or ())]
        known += [f"train/{name}" for name in train_metrics or ()]
        raise ValueError(
            f"monitor: {monitor!r} does not say whether it improves by falling or by rising; give mode='min' or "
            f"mode='max'. Or is it misspelt{closest(monitor, known)}"
        )
    return found


def known_direction(monitor: str, metrics: Any = None, train_metrics: Any = None) -> Direction | None:
    """As `direction` with `"auto"`; None where neither the metric nor the name tells."""
    prefix, slash, name = monitor.partition("/")
    collection = (train_metrics if prefix == "train" else metrics) if slash else None
    higher = _higher_is_better(name, collection)
    if higher is None and "/" in name:  # of one of several validation sets
        higher = _higher_is_better(name.rpartition("/")[2], collection)
    if higher is not None:
        return "max" if higher else "min"
    return _by_name(name if slash else monitor)


def check_watched(
    mode: Direction | None, monitor: str | None, validates: bool, metrics: Any, train_metrics: Any
) -> None:
    """Raise where a scheduler that watches a figure of the epochs can't be given it, or watches it the wrong way.

    Args:
        mode: Which way the scheduler takes the figure to improve; None for a scheduler that watches nothing.
        monitor: The figure; None for the loss.
        validates: Whether the run has validation data.
        metrics: The metrics of validation, a `torchmetrics.MetricCollection`, or None.
        train_metrics: The metrics of training, likewise.

    Raises:
        ValueError: The figure can't be there, or improves the other way.
    """
    if mode is None:
        return
    if monitor is None:
        if mode == "max":
            raise ValueError(
                "schedule_monitor: the scheduler has mode='max', and by default it is given the loss, which improves "
                "by falling; name the figure that it is to watch, as schedule_monitor='val/accuracy'"
            )
        return
    if monitor.startswith("val/") and not validates:
        raise ValueError(f"schedule_monitor: got {monitor!r}, but fit was given no val_data")
    known = ["train/loss", *(f"train/{name}" for name in train_metrics or ())]
    known += ["val/loss", *(f"val/{name}" for name in metrics or ())] if validates else []
    several = any(_has_figures_of_other_names(each) for each in (metrics, train_metrics))
    if not several and not any(monitor.startswith(name) for name in known):
        raise ValueError(f"schedule_monitor: got {monitor!r}, which no epoch will have{closest(monitor, known)}")
    found = known_direction(monitor, metrics, train_metrics)
    if found not in (None, mode):
        how = "falling" if found == "min" else "rising"
        raise ValueError(
            f"schedule_monitor: {monitor} improves by {how}, and the scheduler has mode={mode!r}; make it with "
            f"mode={found!r}"
        )


def _has_figures_of_other_names(metrics: Any) -> bool:
    """Whether a wrapper is among them, which may name its figures by itself."""
    from torchmetrics.wrappers.abstract import WrapperMetric

    return metrics is not None and any(isinstance(metric, WrapperMetric) for metric in metrics.values())


def _higher_is_better(name: str, collection: Any) -> bool | None:
    """What the metric of that name says; a figure `name_0` is one of the several of the metric `name`."""
    if collection is None:
        return None
    metrics = dict(collection.items())
    found = metrics.get(name, metrics.get(re.sub(r"_\d+$", "", name)))
    while found is not None:
        if (higher := getattr(found, "higher_is_better", None)) is not None:
            return bool(higher)
        inner = [name for name in ("metric", "_base_metric", "base_metric") if hasattr(found, name)]  # of wrappers
        found = getattr(found, inner[0]) if inner else None
    return None


def _by_name(name: str) -> Direction | None:
    """What the words of a name tell. Where they disagree the last word decides, if it is known: "dice_loss"."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    votes = list(_votes(words))
    if not votes:
        return None
    last_word, vote = votes[-1]
    if len({each for _, each in votes}) > 1 and last_word != len(words) - 1:
        return None
    if words[0] in _NEGATIONS:
        vote = "max" if vote == "min" else "min"
    return vote


def _votes(words: list[str]) -> Iterator[tuple[int, Direction]]:
    """The index and the direction of each word that is known."""
    for index, word in enumerate(words):
        pair = words[index - 1] + word if index else ""
        for candidate in (pair, word, word.rstrip("0123456789")):  # "f1" is a word, and so is the "bleu" of "bleu4"
            if candidate in _FALLING:
                yield index, "min"
                break
            if candidate in _RISING:
                yield index, "max"
                break

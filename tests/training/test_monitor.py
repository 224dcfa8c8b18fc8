from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.regression import MeanSquaredError
from torchmetrics.wrappers import MinMaxMetric

from mxtorch.callbacks import BestWeights, Checkpoint, EarlyStopping
from mxtorch.training.monitor import direction

FALLING = (
    *("val/loss", "train/loss", "val/nll", "val/kl", "val/kl_divergence", "val/wer", "val/cer", "val/fid", "val/ece"),
    *(
        "val/brier",
        "val/brier_score",
        "val/error",
        "val/top1_error",
        "val/mae",
        "val/MSE",
        "val/rmse",
        "val/perplexity",
    ),
    *("val/hausdorff_distance", "val/dice_loss", "val/f1-loss", "val/cross_entropy", "val/CrossEntropy", "val/lpips"),
    *("loss", "val/negative_log_likelihood", "val/head/loss", "val/nll.mean"),
)
RISING = (
    *("val/accuracy", "val/acc", "val/gloss_f1", "val/floss_accuracy", "val/macro_f1", "val/AUROC", "val/roc_auc"),
    *(
        "val/precision",
        "val/recall@5",
        "val/IoU",
        "val/mIoU",
        "val/dice",
        "val/bleu4",
        "val/BLEU-4",
        "val/r2",
        "val/top5",
    ),
    *("val/mAP50", "val/ndcg@10", "val/psnr", "val/cosine_similarity", "val/neg_mean_squared_error", "val/mcc"),
    *("val/error_recall", "accuracy", "val/terrain_accuracy", "val/explained_variance"),
)
UNKNOWN = ("val/score", "seconds", "learning_rate", "val/m", "val/f1_of_loss_words", "val/glossary", "val/entropy")


@pytest.mark.parametrize(("name", "right"), [*((name, "min") for name in FALLING), *((name, "max") for name in RISING)])
def test_names_are_known_by_whole_words(name, right):
    assert direction(name, "auto") == right


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_says_nothing_is_asked_about(name):
    with pytest.raises(ValueError, match="give mode='min' or mode='max'"):
        direction(name, "auto")
    assert direction(name, "max") == "max"


METRICS = MetricCollection(
    {
        "m": MulticlassAccuracy(num_classes=2),
        "recall_of_errors": MeanSquaredError(),
        "gap": MulticlassCalibrationError(num_classes=2),
        "accuracy_gap": MeanSquaredError(),
        "each": MulticlassAccuracy(num_classes=2, average=None),
        "wrapped": MinMaxMetric(MeanSquaredError()),
    }
)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("val/m", "max"),
        ("val/recall_of_errors", "min"),
        ("val/gap", "min"),
        ("val/accuracy_gap", "min"),
        ("val/each_1", "max"),
        ("val/wrapped", "min"),
        ("val/f1", "max"),
    ],
)
def test_the_metric_of_that_name_comes_before_the_words(name, right):
    assert direction(name, "auto", METRICS) == right


def test_a_user_who_says_the_mode_is_believed():
    assert direction("val/m", "min", METRICS) == "min"


def test_train_and_val_have_metrics_of_their_own():
    train = MetricCollection({"m": MeanSquaredError()})
    assert direction("train/m", "auto", METRICS, train) == "min"
    assert direction("val/m", "auto", METRICS, train) == "max"


@pytest.mark.parametrize("kind", [EarlyStopping, BestWeights, lambda monitor: Checkpoint("unused", monitor=monitor)])
def test_every_follower_asks_before_the_first_step(kind, net, loader, make):
    trainer = make(net, callbacks=[kind("val/score")])
    with pytest.raises(ValueError, match="monitor: 'val/score' does not say"):
        trainer.fit(loader, loader, epochs=2)
    assert trainer.step == 0


@pytest.mark.parametrize("kind", ["best", "stop", "checkpoint"])
def test_an_accuracy_that_rises_improves(kind, loader, make, tmp_path):
    torch.manual_seed(1)
    net = nn.Linear(8, 2)
    follower = {
        "best": lambda: BestWeights("val/skill"),
        "stop": lambda: EarlyStopping("val/skill", patience=1),
        "checkpoint": lambda: Checkpoint(tmp_path, monitor="val/skill"),
    }[kind]()
    metrics = {"skill": MulticlassAccuracy(num_classes=2)}
    trainer = make(net, lr=1e-3, metrics=metrics, callbacks=[follower])
    figures = trainer.fit(loader, loader, epochs=6)["val/skill"]
    assert follower.best == max(figures)


def test_a_metric_may_not_take_the_place_of_the_loss(net, make):
    for options in (
        {"metrics": {"loss": MeanSquaredError()}},
        {"train_metrics": MetricCollection({"loss": MeanSquaredError()})},
    ):
        with pytest.raises(ValueError, match="a metric named 'loss'"):
            make(net, **options)


def plateau(trainer, mode):
    return ReduceLROnPlateau(trainer.optimizer, mode=mode, patience=0, factor=0.5)


def test_a_plateau_that_maximises_asks_for_its_figure(net, loader, make):
    trainer = make(net)
    with pytest.raises(ValueError, match="schedule_monitor"):
        trainer.fit(loader, loader, schedule=plateau(trainer, "max"), schedule_every="epoch")
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("mode", "monitor", "message"),
    [
        ("max", "val/loss", "val/loss improves by falling"),
        ("min", "val/skill", "val/skill improves by rising"),
        ("min", "val/skil", "did you mean 'val/skill'"),
    ],
)
def test_a_plateau_that_watches_a_figure_the_wrong_way_is_refused(net, loader, make, mode, monitor, message):
    trainer = make(net, metrics={"skill": MulticlassAccuracy(num_classes=2)})
    with pytest.raises(ValueError, match=message):
        trainer.fit(loader, loader, schedule=plateau(trainer, mode), schedule_every="epoch", schedule_monitor=monitor)


@pytest.mark.parametrize(
    ("mode", "monitor"), [("max", "val/skill"), ("min", "val/loss"), ("min", "train/loss"), ("min", None)]
)
def test_a_plateau_is_fed_the_figure_that_is_named(net, loader, make, mode, monitor):
    trainer = make(net, lr=1e-3, metrics={"skill": MulticlassAccuracy(num_classes=2)})
    scheduler = plateau(trainer, mode)
    history = trainer.fit(loader, loader, epochs=4, schedule=scheduler, schedule_monitor=monitor)
    figures = history[monitor or "val/loss"]
    assert scheduler.best == (max(figures) if mode == "max" else min(figures))

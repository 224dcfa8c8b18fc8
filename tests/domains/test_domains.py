"""What a Trainer does with the tasks of the field: the right thing, or it says what it does not do.

One row for each task and method: what comes out, or the words of the error.
"""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from mxtorch import ScheduledOptim, Trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")


def detections_found(outputs, targets):
    """A metric of detection: how many of the pictures have a detection for each target."""
    assert len(outputs) == len(targets) in (2, 4)
    return sum(
        len(found["boxes"]) >= len(wanted["boxes"]) for found, wanted in zip(outputs, targets, strict=True)
    ) / len(targets)


def detection():
    # A Faster R-CNN of torchvision over a small backbone, with few proposals.
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
    backbone.out_channels = 8
    net = torchvision.models.detection.FasterRCNN(
        backbone, num_classes=3, min_size=32, max_size=32,
        rpn_anchor_generator=torchvision.models.detection.anchor_utils.AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=1),
        rpn_pre_nms_top_n_train=20, rpn_post_nms_top_n_train=8, rpn_pre_nms_top_n_test=20, rpn_post_nms_top_n_test=8,
    )  # fmt: skip
    samples = [
        (torch.rand(3, 32, 32), {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1 + i % 2])})
        for i in range(4)
    ]
    loader = DataLoader(samples, batch_size=2, collate_fn=lambda batch: tuple(map(list, zip(*batch, strict=True))))
    return net, None, loader, {"found": detections_found}


class TwoScales(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU())

    def forward(self, pictures):
        low = self.low(pictures)
        return {"low": low, "high": self.high(low)}


def segmentation():
    net = torchvision.models.segmentation.LRASPP(TwoScales(), low_channels=4, high_channels=8, num_classes=3)
    loader = DataLoader([(torch.rand(3, 32, 32), torch.randint(3, (32, 32))) for _ in range(4)], batch_size=2)
    return net, nn.CrossEntropyLoss(), loader, {"accuracy": MulticlassAccuracy(3)}


def text():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    net = transformers.BertForSequenceClassification(config)
    samples = [
        {"input_ids": torch.randint(1, 40, (8,)), "attention_mask": torch.ones(8).long(), "labels": torch.tensor(i % 3)}
        for i in range(8)
    ]
    return net, None, DataLoader(samples, batch_size=4), {"accuracy": MulticlassAccuracy(3)}


def language_model():
    config = transformers.GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    net = transformers.GPT2LMHeadModel(config)
    words = [torch.randint(1, 40, (8,)) for _ in range(8)]
    return net, None, DataLoader([{"input_ids": w, "labels": w} for w in words], batch_size=4), None


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layers = nn.Embedding(5, 3), nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, kinds, numbers):
        return self.layers(torch.cat([self.embedding(kinds), numbers], 1))


def tabular():
    samples = [(torch.randint(5, ()), torch.randn(4), torch.randint(2, ())) for _ in range(16)]
    return Tabular(), nn.CrossEntropyLoss(), DataLoader(samples, batch_size=8), {"accuracy": MulticlassAccuracy(2)}


def regression():
    samples = [(torch.randn(4), torch.randn(1)) for _ in range(16)]
    metric = {"mae": lambda outputs, targets: (outputs - targets).abs().mean()}
    return nn.Linear(4, 1), nn.MSELoss(), DataLoader(samples, batch_size=8), metric


def multi_label():
    samples = [(torch.randn(4), torch.randint(2, (3,)).float()) for _ in range(16)]
    return nn.Linear(4, 3), nn.BCEWithLogitsLoss(), DataLoader(samples, batch_size=8), {"a": MultilabelAccuracy(3)}


TASKS = [detection, segmentation, text, language_model, tabular, regression, multi_label]
ONE_CLASS = r"interpret needs (logits \[N, classes\]|class numbers \[N\])"

# What predict gives: the shape, or the kind; and the words of what interpret and export do not do.
EXPECTED = {
    "detection": {"figures": {"val/found"}, "predict": list, "interpret": ONE_CLASS, "export": "meaning of the model"},
    "segmentation": {
        "figures": {"val/loss", "val/accuracy"}, "predict": dict, "interpret": ONE_CLASS, "export": "one tensor",
    },
    "text": {"figures": {"val/loss", "val/accuracy"}, "predict": (8, 3), "export": "meaning of the model"},
    "language_model": {
        "figures": {"val/loss"}, "predict": (8, 8, 40), "interpret": ONE_CLASS, "export": "meaning of the model",
    },
    "tabular": {"figures": {"val/loss", "val/accuracy"}, "predict": (16, 2), "export": "one input"},
    "regression": {"figures": {"val/loss", "val/mae"}, "predict": (16, 1), "interpret": ONE_CLASS},
    "multi_label": {"figures": {"val/loss", "val/a"}, "predict": (16, 3), "interpret": ONE_CLASS},
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_task(task, tmp_path):
    torch.manual_seed(0)
    net, loss, loader, metrics = task()
    expected = EXPECTED[task.__name__]
    optimizer = ScheduledOptim(torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3))
    trainer = Trainer(net, loss, optimizer, metrics=metrics, device="cpu", progress=False)

    history = trainer.fit(loader, loader, epochs=1, schedule="warmup_linear")
    assert torch.isfinite(torch.tensor(history["train/loss"])).all()
    assert expected["figures"] <= set(history.columns)
    figures = trainer.evaluate(loader)
    assert set(figures) == expected["figures"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = trainer.find_lr(loader, training_steps=8, num_steps=60)
    assert found.trials
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    outputs = trainer.predict(loader)
    if isinstance(expected["predict"], tuple):
        assert outputs.shape == expected["predict"]
    else:
        assert isinstance(outputs, expected["predict"])
    if task is detection:
        assert len(outputs) == 4, "one entry for each picture"
    if task is segmentation:
        assert outputs["out"].shape == (4, 3, 32, 32)

    for method in ("interpret", "export"):
        call = {
            "interpret": lambda: trainer.interpret(loader),
            "export": lambda: trainer.export(tmp_path / "net.safetensors", loader),
        }[method]
        if method in expected:
            with pytest.raises(ValueError, match=expected[method]):
                call()
        else:
            assert call() is not None


def test_a_detector_has_the_losses_of_its_own_loop():
    torch.manual_seed(0)
    net, _, loader, _ = detection()
    trainer = Trainer(net, None, torch.optim.SGD(net.parameters(), lr=1e-3), device="cpu", progress=False)
    pictures, targets = next(iter(loader))
    net.train()
    torch.manual_seed(1)
    expected = sum(net(pictures, targets).values())
    torch.manual_seed(1)
    assert torch.equal(trainer.training_step((pictures, targets)).loss, expected)
    with pytest.raises(ValueError, match="nothing to report"):
        trainer.evaluate(loader)

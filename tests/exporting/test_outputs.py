"""How `predict` interprets outputs follows from the loss of the training."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mxtorch import Trainer, exporting
from mxtorch.exporting.__main__ import main
from mxtorch.exporting.outputs import OUTPUTS, outputs_of

SAME = torch.nn.Identity()
ACTIVATIONS = {
    "softmax": lambda outputs: outputs.softmax(1),
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "probabilities": SAME,
    "raw": SAME,
}


class Focal(nn.CrossEntropyLoss):
    """A loss of the user that extends one of torch."""

    def forward(self, outputs, targets):
        return super().forward(outputs * 2, targets)


LOSSES = [
    (nn.CrossEntropyLoss(), "softmax"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "softmax"),
    (Focal(), "softmax"),
    (F.cross_entropy, "softmax"),
    (functools.partial(F.cross_entropy, label_smoothing=0.1), "softmax"),
    (torch.compile(nn.CrossEntropyLoss()), "softmax"),
    (nn.BCEWithLogitsLoss(), "sigmoid"),
    (F.binary_cross_entropy_with_logits, "sigmoid"),
    (nn.MultiLabelSoftMarginLoss(), "sigmoid"),
    (nn.SoftMarginLoss(), "sigmoid"),
    (nn.NLLLoss(), "exp"),
    (F.nll_loss, "exp"),
    (nn.KLDivLoss(reduction="batchmean"), "exp"),
    (nn.BCELoss(), "probabilities"),
    (F.binary_cross_entropy, "probabilities"),
    (nn.MSELoss(), "raw"),
    (F.mse_loss, "raw"),
    (nn.L1Loss(), "raw"),
    (nn.SmoothL1Loss(), "raw"),
    (nn.HuberLoss(), "raw"),
    (nn.GaussianNLLLoss(), "raw"),
    (nn.PoissonNLLLoss(), "raw"),
    (nn.MultiMarginLoss(), "raw"),
]


def name(loss):
    return str(getattr(loss, "__name__", type(loss).__name__))


@pytest.mark.parametrize(("loss", "kind"), LOSSES, ids=[name(loss) for loss, _ in LOSSES])
def test_the_meaning_of_outputs_follows_from_the_loss(loss, kind, tmp_path):
    net = nn.Linear(4, 3)
    trainer = Trainer(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False)
    inputs = torch.randn(5, 4)
    path = trainer.export(tmp_path / "net.safetensors", example=inputs, classes=["a", "b", "c"])
    predictor = exporting.load(path, model=nn.Linear(4, 3))
    assert predictor.activation == kind
    expected = ACTIVATIONS[kind](net(inputs)).tolist()
    for row, values in zip(predictor.predict(inputs), expected, strict=True):
        assert list(row) == {
            "softmax": ["class", "probability", "probabilities"],
            "exp": ["class", "probability", "probabilities"],
            "raw": ["outputs"],
        }.get(kind, ["classes", "probabilities"])
        found = row["outputs" if kind == "raw" else "probabilities"]
        assert found == {key: pytest.approx(value, rel=1e-5) for key, value in zip("abc", values, strict=True)}
        if "classes" in row:
            assert row["classes"] == [key for key, value in zip("abc", values, strict=True) if value >= 0.5]
    words = {"raw": "numbers, given as they are", "sigmoid": "made probabilities by the sigmoid"}
    assert words.get(kind, "probabilities") in (tmp_path / "net.md").read_text()


def own_loss(outputs, targets):
    return (outputs - targets).square().mean()


@pytest.mark.parametrize("loss", [own_loss, lambda outputs, targets: outputs.mean(), nn.CTCLoss(), None])
def test_an_unknown_loss_is_refused(loss, tmp_path):
    net = nn.Linear(4, 3)
    trainer = Trainer(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"outputs: (the loss .* is not one of torch's|there is no loss).*'raw'"):
        trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4))
    assert not list(tmp_path.iterdir())
    for kind in OUTPUTS:
        path = trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4), outputs=kind)
        assert exporting.load(path, model=nn.Linear(4, 3)).activation == kind
    with pytest.raises(ValueError, match=r"outputs: got 'sigmiod'.*did you mean 'sigmoid'"):
        trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4), outputs="sigmiod")


def test_the_argument_has_precedence():
    assert outputs_of(nn.CrossEntropyLoss(), "raw") == "raw"


@pytest.mark.parametrize("ending", [".safetensors", ".pt2", ".onnx"])
def test_every_format_holds_the_meaning(make, tmp_path, ending):
    trainer = make(nn.Linear(4, 2), nn.MSELoss())
    path = trainer.export(tmp_path / f"net{ending}", example=torch.ones(2, 4))
    predictor = exporting.load(path, model=nn.Linear(4, 2) if ending == ".safetensors" else None)
    (row,) = predictor.predict(torch.ones(1, 4))
    assert list(row["outputs"].values()) == pytest.approx(trainer.model(torch.ones(4)).tolist(), rel=1e-5)


def test_a_single_output_of_two_classes(make, tmp_path):
    """The output is the probability of the second class."""
    data = TensorDataset(torch.randn(6, 4), torch.rand(6, 1))
    data.classes = ["cat", "dog"]
    trainer = make(nn.Linear(4, 1), nn.BCEWithLogitsLoss())
    path = trainer.export(tmp_path / "net.safetensors", DataLoader(data, 3))
    predictor = exporting.load(path, model=nn.Linear(4, 1))
    rows = predictor.predict(data.tensors[0])
    for row, (output,) in zip(rows, trainer.model(data.tensors[0]).sigmoid().tolist(), strict=True):
        assert row["probabilities"] == {"cat": pytest.approx(1 - output), "dog": pytest.approx(output)}
        assert row["class"] == ("dog" if output > 0.5 else "cat")


def test_outputs_of_more_dimensions_are_refused(make, tmp_path):
    net = nn.Conv1d(3, 2, 1)
    path = make(net).export(tmp_path / "net.pt2", example=torch.ones(2, 3, 5))
    predictor = exporting.load(path)
    assert predictor(torch.ones(1, 3, 5)).shape == (1, 2, 5)
    with pytest.raises(ValueError, match=r"predict needs a model with outputs \[N, k\]"):
        predictor.predict(torch.ones(1, 3, 5))


@pytest.mark.parametrize("source", ["given", "data", "model"])
def test_names_of_two_classes_are_refused(make, tmp_path, source):
    """With one name for two classes, a dictionary by name would lose a probability."""
    data = TensorDataset(torch.randn(6, 4), torch.zeros(6).long())
    names = ["cat", "dog", "cat"]
    given, trainer = names if source == "given" else None, make(nn.Linear(4, 3))
    if source != "given":
        (data if source == "data" else trainer.model).classes = names
    with pytest.raises(ValueError, match="classes: got 'cat' for 2 classes"):
        trainer.export(tmp_path / "net.safetensors", DataLoader(data, 3), classes=given)
    with pytest.raises(ValueError, match="classes: got 'cat' for 2 classes"):
        trainer.interpret(DataLoader(data, 3), classes=given)


def test_a_prediction_step_that_computes_more_is_refused(tmp_path):
    class Halved(Trainer):
        factor = 0.5

        def prediction_step(self, batch):
            return super().prediction_step(batch) * self.factor

    net = nn.Linear(4, 3)
    trainer = Halved(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False
    )
    with pytest.raises(ValueError, match="prediction_step: it gives other outputs than the model alone"):
        trainer.export(tmp_path / "net.safetensors", example=torch.randn(2, 4))
    trainer.factor = 1.0
    trainer.export(tmp_path / "net.safetensors", example=torch.randn(2, 4))


@pytest.mark.parametrize(
    ("loss", "words"), [(nn.CrossEntropyLoss(), "%"), (nn.BCEWithLogitsLoss(), "%"), (nn.MSELoss(), "0 -0.")]
)
def test_the_command_line(make, tmp_path, capsys, loss, words):
    from PIL import Image

    import model_zoo

    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(net[2].weight, -0.1)
    nn.init.constant_(net[2].bias, -0.1)
    preprocessing = model_zoo.Preprocessing(32, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    path = make(net, loss).export(tmp_path / "net.pt2", example=torch.randn(2, 3, 32, 32), preprocessing=preprocessing)
    Image.new("RGB", (40, 40), (9, 99, 200)).save(tmp_path / "picture.png")
    assert main([str(path), str(tmp_path / "picture.png")]) == 0
    assert words in capsys.readouterr().out

from __future__ import annotations

import pytest
import schedulefree
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import model_zoo
from mxtorch import Callback, Trainer, exporting
from mxtorch.exporting import limits
from mxtorch.exporting.__main__ import main
from mxtorch.exporting.facts import plain_state

FORMATS = (".safetensors", ".pt2", ".onnx")


class Pets(Dataset):
    """A data set of random pictures."""

    classes = ("cat", "dog", "emu")

    def __init__(self, transform):
        self.transform, self.targets = transform, [0, 1, 2, 0, 1, 2]

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.transform(Image.new("RGB", (40, 30), (50 * index, 20, 200 - 40 * index))), self.targets[index]


@pytest.fixture
def pets():
    return DataLoader(Pets(model_zoo.preprocess("resnet10t", size=32)), 2)


@pytest.fixture
def zoo_trainer(make):
    torch.manual_seed(0)
    net = model_zoo.create("resnet10t")
    net.fc = nn.Linear(net.fc.in_features, 3)
    return make(net, nn.CrossEntropyLoss(label_smoothing=0.1), lr=0.001)


@pytest.fixture
def small_trainer(make):
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return make(net, nn.CrossEntropyLoss(label_smoothing=0.1), lr=0.001)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_gives_the_outputs_of_the_model(zoo_trainer, small_trainer, pets, tmp_path, ending):
    trainer = zoo_trainer if ending == ".safetensors" else small_trainer
    trainer.fit(pets, pets)
    modes = [module.training for module in trainer.model.modules()]
    path = trainer.export(tmp_path / f"pets{ending}", pets, train_data=pets, about="Three pets.")
    assert [module.training for module in trainer.model.modules()] == modes
    predictor = exporting.load(path, trusted=ending == ".pt2")
    assert predictor.classes == ("cat", "dog", "emu")
    assert predictor.preprocessing.size == 32
    picture = tmp_path / "pet.png"
    Image.new("RGB", (60, 40), (250, 130, 10)).save(picture)
    inputs = pets.dataset.transform(Image.open(picture))[None]
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(inputs).softmax(1)[0]
    for given in (picture, str(picture), [picture], Image.open(picture), inputs):
        (row,) = predictor.predict(given)
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
        assert row["class"] == predictor.classes[int(expected.argmax())]
    card = path.with_suffix(".md").read_text()
    for words in ("Three pets.", "cat 2, dog 2, emu 2", "label smoothing 0.1", "val/loss", path.name):
        assert words in card


def test_export_does_not_change_the_next_pass_of_the_loader(small_trainer, pets, tmp_path):
    def order():
        return [float(inputs.sum()) for inputs, _ in shuffled], float(torch.rand(1))

    shuffled = DataLoader(pets.dataset, 2, shuffle=True, generator=torch.Generator().manual_seed(3))
    before = shuffled.generator.get_state(), torch.get_rng_state()
    expected = order()
    shuffled.generator.set_state(before[0])
    torch.set_rng_state(before[1])
    modes = [module.training for module in small_trainer.model.modules()]
    small_trainer.export(tmp_path / "pets.safetensors", shuffled)
    assert order() == expected
    assert [module.training for module in small_trainer.model.modules()] == modes


def test_averaged_weights_are_exported(two_moons, tmp_path):
    """Also during training, when Schedule-Free holds the weights at another point."""
    loader = DataLoader(two_moons, 32)

    class Exports(Callback):
        def on_step(self, trainer):
            before = trainer.model.weight.detach().clone()
            path = trainer.export(tmp_path / "net.safetensors", loader)
            outputs.append((exporting.load(path, model=nn.Linear(8, 2))(two_moons.tensors[0]), trainer.predict(loader)))
            assert torch.equal(trainer.model.weight, before)

    outputs = []
    net = nn.Linear(8, 2)
    optimizer = schedulefree.SGDScheduleFree(net.parameters(), lr=0.5)
    Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False, callbacks=[Exports()]).fit(loader)
    assert len(outputs) == 8
    for exported, predicted in outputs:
        torch.testing.assert_close(exported, predicted)


def test_the_command_line(zoo_trainer, pets, tmp_path, capsys):
    path = zoo_trainer.export(tmp_path / "pets.safetensors", pets)
    picture = tmp_path / "pet.png"
    Image.new("RGB", (60, 40)).save(picture)
    assert main([str(path), str(picture), "--top", "2"]) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert main([str(tmp_path / "nothing.onnx"), str(picture)]) == 1
    assert "nothing.onnx" in capsys.readouterr().err


def test_the_card_names_the_licence_and_the_rates(make, pets, tmp_path):
    net = model_zoo.create("resnet10t")
    net.zoo_weights = "c3_in1k"
    net.fc = nn.Linear(net.fc.in_features, 3)
    trainer = make(net)
    trainer.fine_tune(pets, pets, epochs=0, lr=0.01)
    trainer.export(tmp_path / "pets.safetensors", pets)
    card = (tmp_path / "pets.md").read_text()
    assert "Network: resnet10t" in card
    assert "`c3_in1k`, licence Apache-2.0" in card
    assert "Learning rate, head: 1.00e-02 (given)" in card
    assert "1 epochs, 3 steps" in card


@pytest.mark.parametrize("ending", FORMATS)
def test_models_that_are_not_of_the_zoo(make, tmp_path, ending):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    path = make(net).export(tmp_path / f"net{ending}", example=torch.randn(3, 4), classes=["no", "yes"])
    if ending == ".safetensors":
        with pytest.raises(ValueError, match="not of the zoo; give load"):
            exporting.load(path)
        twin = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        predictor = exporting.load(path, model=twin)
        with pytest.raises(ValueError, match="does not fit the network"):
            exporting.load(path, model=nn.Linear(4, 2))
    else:
        predictor = exporting.load(path, trusted=True)
    inputs = torch.randn(5, 4)
    assert torch.allclose(predictor(inputs), net.eval()(inputs), atol=1e-5)
    assert set(predictor.predict(inputs)[0]["probabilities"]) == {"no", "yes"}
    with pytest.raises(ValueError, match="does not say how a picture becomes an input"):
        predictor.predict("x.png")


def test_names_are_without_wrappers(make, tmp_path):
    net = nn.Sequential(nn.Linear(4, 2))
    names = set(net.state_dict())
    assert set(plain_state(nn.DataParallel(net))) == names
    assert set(plain_state(torch.compile(net))) == names
    inner = nn.Sequential(torch.compile(nn.Linear(4, 2)))
    assert set(plain_state(inner)) == names
    exporting.load(make(torch.compile(net)).export(tmp_path / "net.safetensors", example=torch.ones(2, 4)), model=net)


def test_a_model_that_can_not_be_exported(make, tmp_path):
    class Branching(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) * (2 if float(inputs.sum()) > 0 else 1)

    with pytest.raises(ValueError, match="can't be exported"):
        make(Branching(4, 2)).export(tmp_path / "net.pt2", example=torch.ones(2, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.onxx", {"example": torch.ones(2, 4)}, "did you mean '.onnx'"),
        ("no/net.onnx", {"example": torch.ones(2, 4)}, "the folder .*no does not exist"),
        ("net.pt2", {}, "needs a batch of inputs"),
        ("net.pt2", {"example": torch.ones(4)}, "example: got"),
        ("net.pt2", {"example": torch.ones(2, 4), "classes": ["a"]}, "classes: got 1 names, but the model has 2"),
    ],
)
def test_wrong_arguments(make, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(4, 2)).export(tmp_path / name, **options)


@pytest.mark.parametrize("ending", FORMATS)
def test_damaged_and_foreign_files(tmp_path, ending):
    (tmp_path / f"net{ending}").write_bytes(b"not at all" * 20)
    with pytest.raises(ValueError, match=r"damaged|not written by"):
        exporting.load(tmp_path / f"net{ending}", trusted=True)
    with pytest.raises(FileNotFoundError):
        exporting.load(tmp_path / f"nothing{ending}")


def test_a_pt2_opens_only_if_it_is_trusted(make, tmp_path, capsys, monkeypatch):
    path = make(nn.Linear(4, 2)).export(tmp_path / "net.pt2", example=torch.ones(2, 4))
    assert exporting.load(path)(torch.ones(3, 4)).shape == (3, 2)  # this process wrote exactly these bytes
    monkeypatch.setattr(limits, "_written_here", set())
    with pytest.raises(ValueError, match=r"can run any code.*trusted=True.*safetensors or \.onnx"):
        exporting.load(path)
    assert main([str(path), "x.png"]) == 1
    assert "can run any code" in capsys.readouterr().err
    assert main([str(path), "x.png", "--trusted"]) == 1
    assert "does not say how a picture becomes an input" in capsys.readouterr().err
    assert "trusted=True" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("place", ["net.safetensors", "net.md"])
@pytest.mark.parametrize("what", ["a file", "a link", "a link to nothing", "a folder", "an empty file"])
def test_files_that_no_export_wrote_are_not_replaced(make, tmp_path, place, what):
    victim, path = tmp_path / "victim", tmp_path / place
    victim.write_text("precious")
    if what == "a file":
        path.write_text("precious")
    elif what == "an empty file":
        path.touch()
    elif what == "a folder":
        path.mkdir()
    else:
        path.symlink_to(victim if what == "a link" else tmp_path / "nothing")
    before = sorted(found.name for found in tmp_path.iterdir())
    trainer = make(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"was not written by an export.*overwrite=True"):
        trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4))
    assert sorted(found.name for found in tmp_path.iterdir()) == before
    assert victim.read_text() == "precious"
    if what == "a folder":
        return
    trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4), overwrite=True)
    assert not path.is_symlink()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    trainer.export(tmp_path / "net.safetensors", example=torch.ones(2, 4))  # export replaces its own files


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failed_export_does_not_change_the_old_file(make, tmp_path, ending, monkeypatch):
    trainer = make(nn.Linear(4, 2))
    path = trainer.export(tmp_path / f"net{ending}", example=torch.ones(2, 4))
    before = path.read_bytes()
    trainer.export(path, example=torch.ones(2, 4))  # export may replace it later, because an export wrote it
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        trainer.export(path, example=torch.ones(2, 4))
    assert len(path.read_bytes()) == len(before)
    assert sorted(found.suffix for found in tmp_path.iterdir()) == sorted([ending, ".md"])


def test_names_in_the_card_are_escaped(make, tmp_path):
    names = ["<script>alert(1)</script>", "a\n## Forged\n", "[x](http://evil.invalid)|`"]
    path = make(nn.Linear(4, 3)).export(tmp_path / "n_e_t.safetensors", example=torch.ones(2, 4), classes=names)
    card = path.with_suffix(".md").read_text()
    assert "<script>" not in card
    assert "\n## Forged" not in card
    assert r"\[x\](http://evil.invalid)\|\`" in card
    assert card.startswith(r"# n\_e\_t")

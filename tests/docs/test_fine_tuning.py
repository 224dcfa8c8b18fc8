"""The code of docs/fine-tuning.md runs, on small pictures and without pretrained weights."""

import re
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from mxtorch import balance, callbacks, fine_tuning, mixing, model_zoo

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text()


def loader(count):
    pictures = [(torch.randn(3, 32, 32), index % 10) for index in range(count)]
    return DataLoader(pictures, 4, shuffle=True)


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second, _ = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    first = first.replace("pretrained=True", "").replace("dogs.onnx", "dogs.safetensors")
    scope = {"__name__": "fine_tuning", "train_data": loader(12), "val_data": loader(10)}
    for block in (first, second):
        block = re.sub(r"epochs=(3|20)", "epochs=1", block)
        block = block.replace("lr=found", "lr=0.01")  # in pictures of noise there is nothing to find
        exec(compile(block, "docs/fine-tuning.md", "exec"), scope)
    assert "features of the frozen layers" in capsys.readouterr().out
    assert (tmp_path / "dogs.safetensors").exists()
    assert len(scope["trainer"].history.rows) == 3


def test_what_it_names_exists():
    modules = {
        "balance": balance,
        "callbacks": callbacks,
        "fine_tuning": fine_tuning,
        "mixing": mixing,
        "model_zoo": model_zoo,
    }
    names = re.findall(rf"\b({'|'.join(modules)})\.([A-Za-z_]+)\(", DOCUMENT)
    assert len(names) > 12
    assert all(hasattr(modules[module], name) for module, name in names)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model_zoo.cli import main
from model_zoo.weights import cache_folder


def test_list(capsys):
    assert main(["list", "resnext*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["resnext50_32x4d", "resnext101_64x4d", "resnext101_32x4d"]
    assert "25.03 M" in lines[0]
    assert main(["list", "--pretrained", "--licence", "Apache-2.0", "vgg*"]) == 0
    assert capsys.readouterr().out == ""


def test_the_table_of_the_documentation(capsys):
    assert main(["list", "--markdown"]) == 0
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "model-zoo.md").read_text()
    assert capsys.readouterr().out in page, "run: python -m model_zoo list --markdown"


def test_info(capsys):
    assert main(["info", "nasnetalarge"]) == 0
    assert "dc4a7b8b" in capsys.readouterr().out
    assert main(["info", "nasnetlarge"]) == 2
    assert "did you mean 'nasnetalarge'" in capsys.readouterr().err


def test_fetch_and_verify(published, capsys):
    assert main(["fetch", "resnet10t"]) == 0
    path = cache_folder() / "resnet10t-test.pth"
    assert capsys.readouterr().out.strip() == str(path)
    assert main(["verify", "resnet10t"]) == 0
    assert "1 files on this machine, 0 damaged" in capsys.readouterr().out
    path.write_bytes(b"damaged")
    assert main(["verify"]) == 1
    assert "damaged or another file" in capsys.readouterr().out
    assert main(["fetch", "resnet10t", "--tag", "none"]) == 2
    assert "resnet10t has c3_in1k" in capsys.readouterr().err


def test_weights_that_are_not_available(monkeypatch, capsys):
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    assert main(["fetch", "resnet18"]) == 1
    assert "By hand: put resnet18-f37072fd.pth" in capsys.readouterr().err


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "model_zoo", "list", "swin*"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("swin_tiny")
    with pytest.raises(SystemExit, match="2"):
        main(["unknown"])

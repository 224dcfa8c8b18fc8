"""The code of docs/layers.md runs, and names what there is."""

import re
from pathlib import Path

import pytest

from mxtorch import init, nn
from mxtorch.init import registry

DOCUMENT = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()


def test_the_code_runs_from_top_to_bottom(monkeypatch, capsys):
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    assert len(blocks) >= 8
    scope = {"__name__": "layers"}
    for block in blocks:
        exec(compile(block, "docs/layers.md", "exec"), scope)
    assert "status: vanishing" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in nn.__all__ if name not in ("Layer", "ChannelNorm")])
def test_every_layer_is_in_it(name):
    assert re.search(rf"nn\.{re.sub(r'[123]d$', '', name)}", DOCUMENT), name


@pytest.mark.parametrize("name", registry._BY_NAME)
def test_every_initialiser_is_in_it(name):
    assert f"`{name}`" in DOCUMENT


def test_names_of_initialisers_in_it_exist():
    for name in set(re.findall(r"\binit\.([A-Za-z_]+)", DOCUMENT.split("## Gluon")[0])) - {"normal_", "uniform_"}:
        assert hasattr(init, name) or name == "calculate_gain", name

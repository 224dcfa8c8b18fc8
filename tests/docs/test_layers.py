"""docs/how-to/layers.md names what there is."""

import re
from pathlib import Path

import pytest

from mxtorch import init, nn
from mxtorch.init import registry

DOCUMENT = (Path(__file__).parents[2] / "docs" / "how-to" / "layers.md").read_text()


@pytest.mark.parametrize("name", [name for name in nn.__all__ if name not in ("Layer", "ChannelNorm")])
def test_every_layer_is_in_it(name):
    assert re.search(rf"nn\.{re.sub(r'[123]d$', '', name)}", DOCUMENT), name


@pytest.mark.parametrize("name", registry._BY_NAME)
def test_every_initialiser_is_in_it(name):
    assert f"`{name}`" in DOCUMENT


def test_names_of_initialisers_in_it_exist():
    for name in set(re.findall(r"\binit\.([A-Za-z_]+)", DOCUMENT.split("## Gluon")[0])) - {"normal_", "uniform_"}:
        assert hasattr(init, name) or name == "calculate_gain", name

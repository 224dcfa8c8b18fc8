import functools

import pytest
import torch
from torch import nn

from mxtorch import init
from mxtorch.init import registry

NEEDED = {"constant": {"value": 2}, "sparse": {"sparsity": 0.5}, "fixup": {"blocks": 4}}


@pytest.mark.parametrize("name", registry._BY_NAME)
def test_every_name_and_its_spelling_as_a_class(name):
    made = init.get(name, **NEEDED.get(name, {}))
    assert init.get(type(made).__name__, **NEEDED.get(name, {})) == made
    assert type(made).__name__ in init.__all__


@pytest.mark.parametrize(("alias", "name"), registry._ALIASES.items())
def test_aliases(alias, name):
    assert init.get(alias) == init.get(name)


def test_initialisers_are_returned_as_they_are():
    made = init.Normal()
    assert init.get(made) is made
    assert init.get(init.Normal, std=2) == init.Normal(std=2)
    partial = functools.partial(nn.init.normal_, std=0.5)
    assert init.get(partial) == init.Function(partial)


@pytest.mark.parametrize(
    ("given", "settings", "error", "says"),
    [
        ("kaimming_normal", {}, ValueError, r"weight_init: got 'kaimming_normal'; did you mean 'kaiming_normal'"),
        ("normal", {"sdt": 1}, ValueError, r"weight_init: Normal got 'sdt'; did you mean 'std'"),
        ("constant", {}, ValueError, r"Constant needs value; give init.Constant\(value=...\)"),
        (3.0, {}, TypeError, r"weight_init: got 3.0; give a name"),
        (None, {}, TypeError, r"weight_init: got None"),
        (nn.Linear, {}, TypeError, r"weight_init: got <class"),
        (nn.init.zeros_, {"std": 1}, TypeError, "give settings only with a name"),
        ("normal", {"std": -1}, ValueError, "std: got -1"),
        ("normal", {"std": float("nan")}, ValueError, "std: got nan"),
        ("uniform", {"a": 2, "b": 1}, ValueError, "a: got 2.0 with b=1.0"),
        ("truncated_normal", {"a": 2, "b": 1}, ValueError, "a: got 2.0 with b=1.0"),
        ("truncated_normal", {"mean": 50}, ValueError, "mean: got 50.0"),
        ("constant", {"value": "one"}, ValueError, "value: got 'one'"),
        ("kaiming_normal", {"mode": "fan_inn"}, ValueError, "mode: got 'fan_inn'; did you mean 'fan_in'"),
        ("kaiming_normal", {"nonlinearity": "rely"}, ValueError, "nonlinearity: got 'rely'; did you mean 'relu'"),
        ("sparse", {"sparsity": 2}, ValueError, "sparsity: got 2"),
        ("fixup", {"blocks": 0}, ValueError, "blocks: got 0"),
        ("fixup", {"blocks": 2, "layers": 1}, ValueError, "layers: got 1"),
        ("dirac", {"groups": 1.5}, ValueError, "groups: got 1.5"),
    ],
)
def test_errors_say_what_to_do(given, settings, error, says):
    with pytest.raises(error, match=says):
        init.get(given, "weight_init", **settings)


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))


@pytest.mark.usefixtures("names")
def test_register_a_function_and_a_class():
    @init.register("sevens_again")
    def sevens(tensor):
        nn.init.constant_(tensor, 7)

    @init.register("eights")
    class Eights(init.Initializer):
        def fill(self, tensor, generator, place):
            tensor.fill_(8)

    assert init.get("sevens_again")(torch.empty(2)).tolist() == [7, 7]
    assert init.get("eights")(torch.empty(2)).tolist() == [8, 8]
    assert init.get("eights") == Eights()


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("name", "what", "error", "says"),
    [
        ("normal", nn.init.normal_, ValueError, "taken"),
        ("xavier", nn.init.normal_, ValueError, "taken"),
        ("My Init", nn.init.normal_, ValueError, "lower-case"),
        (3, nn.init.normal_, TypeError, "give a string"),
        ("mine", 3, TypeError, "give a subclass"),
        ("mine", nn.Linear, TypeError, "give a subclass"),
    ],
)
def test_register_refuses(name, what, error, says):
    with pytest.raises(error, match=says):
        init.register(name)(what)

"""What a user sees of the package itself."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest

import mxtorch
from mxtorch import Trainer, exporting, fine_tuning, interpretation


def test_dir_shows_the_public_names_alone():
    assert dir(mxtorch) == sorted(mxtorch.__all__)
    assert {"Trainer", "CheckpointError", "model_zoo", "exporting"} <= set(dir(mxtorch))
    assert all(getattr(mxtorch, name) is not None for name in dir(mxtorch))


def test_the_map_has_every_public_name():
    listed = mxtorch.__doc__.replace(";", " ").replace("`", " ").split()
    assert [name for name in mxtorch.__all__ if name not in listed] == ["__version__"]


def test_help_shows_the_map():
    text = pydoc.plain(pydoc.render_doc(mxtorch))
    assert "Learning rates" in text
    assert "CheckpointError" in text


@pytest.mark.parametrize(
    ("method", "function"),
    [
        (Trainer.fine_tune, fine_tuning.fine_tune),
        (Trainer.interpret, interpretation.interpret),
        (Trainer.export, exporting.export),
    ],
)
def test_a_method_takes_what_its_function_takes(method, function):
    """The functions are imported on first use, so their defaults stand a second time at the methods."""
    defaults = [
        {name: parameter.default for name, parameter in list(inspect.signature(one).parameters.items())[1:]}
        for one in (method, function)
    ]
    assert defaults[0] == defaults[1]


def test_what_a_training_does_not_need_is_imported_on_first_use():
    script = """
import sys, mxtorch
heavy = ("torchvision", "timm", "tensorboard", "matplotlib", "model_zoo", "mxtorch.init", "mxtorch.nn", "torchmetrics")
heavy += ("torch.distributed.checkpoint", "torch.distributed.tensor", "accelerate", "sympy", "PIL")
print([name for name in heavy if name in sys.modules])
mxtorch.init.Normal, mxtorch.nn.Linear, mxtorch.balance.class_weights, mxtorch.FineTuning, mxtorch.Interpretation
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mxtorch' has no attribute 'trainerr'"):
        _ = mxtorch.trainerr

"""`mxtorch.model_zoo` is the zoo of mxtorch, whatever other modules have that name.

Every case runs in a process of its own, whose current folder is a user's and comes first on `sys.path`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The path entries of an installed wheel and of an editable install. Both come after the current folder.
LAYOUTS = {
    "wheel": "sys.path.append(root)",
    "editable": """
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in ("mxtorch", "model_zoo"):
            return importlib.util.spec_from_file_location(name, f"{root}/{name}/__init__.py")

sys.meta_path.append(Finder)
""",
}
# A user's own module of that name, as files in a folder.
THEIRS = {
    "a package": {"model_zoo/__init__.py": "whose = 'theirs'"},
    "a module": {"model_zoo.py": "whose = 'theirs'"},
    "a folder of data": {"model_zoo/weights.bin": ""},
}


def run(folder: Path, script: str, layout: str = "wheel", arguments: tuple[str, ...] = ()) -> str:
    """The output of a script, which runs in a folder with an installation of mxtorch."""
    prelude = f"""
import importlib.util, sys

root = {str(ROOT)!r}
# An editable install of mxtorch in the environment of the tests would be found, too.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path[:] = ["", *(path for path in sys.path[1:] if path != root)]
{LAYOUTS[layout]}
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


OURS = """
import pickle

import mxtorch
import mxtorch.model_zoo
from mxtorch import model_zoo as zoo
from mxtorch.model_zoo import Entry
from mxtorch.model_zoo.cli import main

assert zoo is mxtorch.model_zoo is sys.modules["mxtorch.model_zoo"]
assert zoo.__file__ == f"{root}/model_zoo/__init__.py", zoo.__file__
assert zoo.__doc__.startswith("Pretrained networks"), zoo.__doc__
assert Entry is zoo.Entry
assert main(["list", "resnet10t"]) == 0
assert isinstance(zoo.info("resnet10t"), Entry)
assert pickle.loads(pickle.dumps(zoo.info("resnet10t"))) == zoo.info("resnet10t")
assert not {"torchvision", "timm"} & set(sys.modules)
again = importlib.reload(zoo)
assert again is zoo is mxtorch.model_zoo is sys.modules["mxtorch.model_zoo"]
assert zoo.__file__ == f"{root}/model_zoo/__init__.py", zoo.__file__
assert zoo.Entry is Entry
files = {id(module): str(getattr(module, "__file__", "")) for module in sys.modules.values()}
files = [file for file in files.values() if file.startswith(f"{root}/model_zoo/")]
assert len(files) == len(set(files)), "a module is there twice"
"""


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("a package", "wheel"), ("a package", "editable"), ("a module", "wheel"), ("a folder of data", "editable")],
)
def test_a_users_module_of_that_name_is_never_taken(tmp_path, kind, layout):
    write(tmp_path, THEIRS[kind])
    assert run(tmp_path, OURS, layout).startswith("resnet10t ")


def test_a_users_module_may_be_imported_first_and_does_not_change(tmp_path):
    write(tmp_path, THEIRS["a package"])
    script = "import model_zoo\ntheirs = model_zoo" + OURS + "assert sys.modules['model_zoo'] is theirs is not zoo"
    run(tmp_path, script)


def test_a_users_module_may_be_imported_afterwards(tmp_path):
    write(tmp_path, {**THEIRS["a module"], "deeper/model_zoo.py": "from mxtorch.model_zoo import resnet10t"})
    run(tmp_path, OURS + "import model_zoo\nassert model_zoo.whose == 'theirs'\nassert zoo is not model_zoo")
    # The user's module may use the zoo during its import.
    run(tmp_path / "deeper", "import model_zoo\nassert model_zoo.resnet10t.__module__ == 'mxtorch.model_zoo'")


def test_a_module_without_a_file_or_spec(tmp_path):
    run(tmp_path, "import types\nsys.modules['model_zoo'] = types.ModuleType('model_zoo')" + OURS)


@pytest.mark.parametrize(
    ("first", "layout"), [("", "editable"), ("import model_zoo.cli\n", "wheel")], ids=["editable", "wheel, imported"]
)
def test_both_names_are_one_module_without_another_module_of_the_name(tmp_path, first, layout):
    same = """
import model_zoo
import model_zoo.families
import mxtorch.model_zoo.families

assert model_zoo is zoo
assert sys.modules["model_zoo.families"] is sys.modules["mxtorch.model_zoo.families"]
"""
    run(tmp_path, first + OURS + same, layout)


def test_the_import_of_mxtorch_does_not_import_the_zoo(tmp_path):
    script = """
import mxtorch

loaded = {"model_zoo", "mxtorch.model_zoo", "mxtorch.exporting", "torchvision", "timm"} & set(sys.modules)
assert not loaded, loaded
assert mxtorch.model_zoo.resnet10t
assert "model_zoo" in dir(mxtorch)
"""
    run(tmp_path, script)


def test_a_pickled_network(tmp_path):
    write(tmp_path, {"theirs/model_zoo.py": "", "nobodys/nothing": ""})
    save = """
import torch
from mxtorch import model_zoo

net = model_zoo.squeezenet1_1()
torch.save((net, model_zoo.features(net)), sys.argv[1])
"""
    load = """
import torch

net, features = torch.load(sys.argv[1], weights_only=False)
from mxtorch import model_zoo

assert type(model_zoo.features(net)) is type(features)
assert features(torch.zeros(1, 3, 64, 64)).shape == (1, net.fc.in_features)
model_zoo.freeze_to(net, "head")
"""
    path = str(tmp_path / "net.pt")
    run(tmp_path / "theirs", save, arguments=(path,))
    run(tmp_path / "theirs", load, arguments=(path,))
    run(tmp_path / "nobodys", load, arguments=(path,))


def test_as_a_program(tmp_path):
    write(tmp_path, THEIRS["a package"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "mxtorch.model_zoo", "list", "swin*"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("swin_tiny"), done.stderr


def test_an_installation_without_the_zoo_is_an_error(tmp_path):
    import shutil

    shutil.copytree(ROOT / "mxtorch", tmp_path / "mxtorch", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path, {"user/model_zoo.py": ""})
    script = """
sys.path[-1] = ".."
import mxtorch

try:
    import mxtorch.model_zoo
except ModuleNotFoundError as error:
    assert "installed without its model zoo" in str(error), error
else:
    raise AssertionError
"""
    run(tmp_path / "user", script)

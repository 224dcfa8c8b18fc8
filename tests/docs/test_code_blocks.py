"""Every block of code in the README and the documentation is run.

Blocks of Python are run page by page, from top to bottom, in one namespace and a folder of their own. Notebooks are run
when the site is built (tests/docs/test_site.py holds it to that). What is typed into a shell is in a table, with
how it is checked.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import torch
from blocks import ROOT, Block, blocks, is_notebook, pages

from mxtorch.init import registry
from mxtorch.lr_finder.numbers import NUMBERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PAGES = [page for page in pages() if not is_notebook(page)]
# Sphinx's own directives, and blocks that are no code: output, figures, prose.
NO_CODE = {"", "text", "console", "{toctree}", "{include}", "{grid}", "{grid-item-card}", "{note}", "{warning}"}
SHELL = {"bash", "shell", "sh"}

pytestmark = [
    # On so little data a search promises nothing.
    pytest.mark.filterwarnings("ignore:fit trains with a rate of"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
]


def kind(block: Block) -> str:
    return block.kind.split()[0] if block.kind else ""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_checked(page):
    for block in blocks(page):
        assert kind(block) in NO_CODE | SHELL | {"python"}, f"{page}:{block.line}"
        if kind(block) in ("", "text", "console"):
            assert not re.search(r"^(>>> |import |from \w+ import |\$ )", block.code, re.MULTILINE), (
                f"{page}:{block.line} looks like code; say of which kind it is"
            )


# Those of other libraries are run by tests/integrations, with all that imports such a library in one process.
WITH_CODE = [
    page
    for page in PAGES
    if not page.startswith("docs/integrations/") and any(block.kind == "python" for block in blocks(page))
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    monkeypatch.setenv("MXTORCH_OFFLINE", "1")
    seconds = NUMBERS.seconds
    object.__setattr__(NUMBERS, "seconds", 1.0)  # a search takes 20 seconds, whatever the data
    # Classes are pickled and asked for their module, so there must be one.
    name = re.sub(r"\W", "_", page)
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    try:
        for block in blocks(page):
            if block.kind == "python":
                code = "\n" * (block.line - 1) + block.code  # so that a traceback shows the line in the page
                exec(compile(code, str(ROOT / page), "exec", dont_inherit=True), vars(module))
    finally:
        object.__setattr__(NUMBERS, "seconds", seconds)
        torch.use_deterministic_algorithms(False)


# ---------------------------------------------------------------- the shell


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def check_pip(arguments: list[str]) -> None:
    """`pip install` names this project, with extras that there are."""
    assert arguments[1] == "install", arguments
    for name in arguments[2:]:
        if not name.startswith("-"):
            found = re.fullmatch(r"(?:\.|mxtorch)(?:\[([\w,-]+)\])?", name)
            assert found, f"{name} is not this project"
            assert set((found[1] or "").split(",")) - {""} <= extras(), name


def check_options(script: str, arguments: list[str]) -> None:
    """A script is there and knows the options; it is not run."""
    path = ROOT / script
    options = [one.split("=")[0] for one in arguments if one.startswith("--")]
    text = path.read_text()
    for option in options:
        assert f'"{option}"' in text, f"{script} has no {option}"


def check_run(arguments: list[str]) -> None:
    """It runs and ends well."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, timeout=100)


def check(line: str) -> None:
    """One command, whose name decides how it is checked; a command that is not in here fails."""
    command = shlex.split(line, comments=True)
    match command:
        case [] | ["pytest", *_] | ["pre-commit", "install"] | [".", _] | ["cd", _] | ["git", "clone", *_]:
            pass
        case ["pip", *_]:
            check_pip(command)
        case ["python", "-m", "venv", ".venv"]:
            pass
        case ["python", "-m", "sphinx", *_]:
            assert command[3:] == ["-W", "docs", "docs/_build"]  # as .ci/run builds it
        case ["python", "-m", "pytest" | "build", *_]:
            pass
        case ["python", "-m", "mxtorch", *arguments]:
            check_run(["-m", "mxtorch", *arguments])
        case ["python", "-m", "mxtorch.model_zoo" | "model_zoo" as module, *arguments]:
            if arguments[0] in ("list", "info"):
                check_run(["-m", module, *arguments])
        case ["python", "-m", module, *arguments] if module.startswith("benchmarks."):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or (
                ROOT / module.replace(".", "/") / "__main__.py"
            ).exists()
        case ["python", script, *arguments]:
            check_options(script, arguments)
        case ["torchrun" | "accelerate" | "srun", *arguments]:
            assert arguments
        case ["tensorboard", "--logdir", _]:
            pass
        case _:
            raise AssertionError(f"no check for {line!r}: add it to the table")


@pytest.mark.parametrize(
    ("page", "line"),
    [
        pytest.param(page, part.strip(), id=f"{page}:{part.strip()}")
        for page in pages()
        for block in blocks(page)
        if kind(block) in SHELL
        for line in block.code.replace("\\\n", " ").splitlines()
        for part in line.split("&&")
        if part.strip() and not part.strip().startswith("#")
    ],
)
def test_shell(page, line):
    check(line)


def test_what_is_wrong_is_seen():
    for line in ("pip install mxtorch[exampels]", "python examples/dog_breed.py --epoch 3", "npm install", "rm -r x"):
        with pytest.raises(AssertionError):
            check(line)
    with pytest.raises(subprocess.CalledProcessError):
        check("python -m mxtorch.model_zoo info resnet5O")


def test_pages_are_found():
    found = pages()
    assert {"README.md", "docs/index.md", "docs/how-to/fine-tuning.md"} <= set(found)
    assert sum(block.kind == "python" for page in found for block in blocks(page)) >= 20

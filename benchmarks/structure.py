"""How the code hangs together: files that a step enters, a Trainer's attributes, circles of imports, sizes.

    python benchmarks/structure.py [--json]

Prints

- the files of mxtorch and model_zoo in which a function is called by one optimizer step, by a `fit`, by a search, by a
  resume; and how often a call goes from one of these files to another. What is called is seen with `sys.setprofile`;
  everything was run once before, so that what is imported on first use does not count;
- the public attributes of a Trainer after `fit`;
- circles of imports, of which none is left out: neither those for type checking, nor those inside functions;
- modules directly in mxtorch, lines, lines of code (without blank ones, comments and docstrings);
- the seconds that `import mxtorch` takes, and what is left of them where torch is imported already.

The mxtorch that Python finds is measured; `PYTHONPATH=OTHER python benchmarks/structure.py` takes another checkout.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import networkx
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mxtorch
from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint

ROOT = Path(mxtorch.__file__).resolve().parent.parent
PACKAGES = ("mxtorch", "model_zoo")
IMPORTS = 5


# ---------------------------------------------------------------- files that are entered


class Entered:
    """Sees which of the project's files are entered while it is on, in this thread and in those begun meanwhile.

    Attributes:
        files: The files in which a function was called or a generator gone on with, and how often.
        crossings: Calls of which the nearest caller in the project is in another file.
    """

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.crossings = 0
        self._names: dict[str, str | None] = {}

    def __enter__(self) -> Entered:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *unused: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or (name := self._name(frame)) is None:
            return
        self.files[name] = self.files.get(name, 0) + 1
        caller = frame.f_back
        while caller is not None and self._name(caller) is None:
            caller = caller.f_back
        if caller is not None and self._name(caller) != name:
            self.crossings += 1

    def _name(self, frame: FrameType) -> str | None:
        """The file of a function of the project, as seen from its root; None for others, and for modules' bodies."""
        file = frame.f_code.co_filename
        if file not in self._names:
            path = Path(file)
            inside = any(path.is_relative_to(ROOT / package) for package in PACKAGES)
            self._names[file] = str(path.relative_to(ROOT)) if inside else None
        return None if frame.f_code.co_name == "<module>" else self._names[file]

    def report(self) -> dict[str, Any]:
        """For the table."""
        return {"count": len(self.files), "crossings": self.crossings, "files": sorted(self.files)}


class Between(Callback):
    """Looks from one call of a hook to the next, the second call by default."""

    def __init__(self, hook: str, first: int = 2) -> None:
        self.entered = Entered()
        self._hook, self._first, self._calls = hook, first, 0

    def on_step(self, trainer: Trainer) -> None:
        """A step is over."""
        self._count("on_step")

    def on_epoch_complete(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """An epoch is over."""
        self._count("on_epoch_complete")

    def _count(self, hook: str) -> None:
        self._calls += hook == self._hook
        if hook == self._hook and self._calls == self._first + 1:
            self.entered.__exit__()
        if hook == self._hook and self._calls == self._first:
            self.entered.__enter__()


def loader(samples: int = 80) -> DataLoader[Any]:
    """Plain data, ten batches of eight."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), 8, shuffle=True)


def trainer(*callbacks: Callback, kind: type[Trainer] = Trainer) -> Trainer:
    """Of a small network, with the defaults, silent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return kind(model, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False)


def step_in_fit() -> Entered:
    """From the end of the second step to that of the third: the batch is fetched, the step taken and counted."""
    between = Between("on_step")
    trainer(between).fit(loader())
    return between.entered


def from_batch_to_update() -> Entered:
    """From where the data give the third batch to the end of the torch optimizer's step: what computes a step."""
    entered, batches = Entered(), list(loader())

    class Data:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[Any]:
            yield from batches[:2]
            entered.__enter__()
            yield from batches[2:]

    made = trainer()
    made.optimizer.optimizer.register_step_post_hook(lambda *unused: entered.__exit__())
    made.fit(Data())
    return entered


def epoch_in_fit(val_data: Any = None) -> Entered:
    """From the end of the first of two epochs to that of the second one."""
    between = Between("on_epoch_complete", first=1)
    trainer(between).fit(loader(), val_data, epochs=2)
    return between.entered


def called_step() -> Entered | None:
    """`trainer.optimizer_step` with a window of batches that `fit` gave it; None where `fit` does not call it."""
    windows: list[Any] = []

    class Noting(Trainer):
        def optimizer_step(self, window: Any, *arguments: Any, **named: Any) -> Any:
            windows.append(window)
            return super().optimizer_step(window, *arguments, **named)

    if not hasattr(Trainer, "optimizer_step"):
        return None
    noting = trainer(kind=Noting)
    noting.fit(loader())
    if not windows:
        return None
    noting.model.train()
    with Entered() as entered:
        Trainer.optimizer_step(noting, windows[-1])
    return entered


def whole(act: Callable[[Trainer], object], *callbacks: Callback) -> Entered:
    """All that a call enters, of a trainer that was made before."""
    made = trainer(*callbacks)
    with Entered() as entered:
        act(made)
    return entered


class StoppedError(Exception):
    """Ends a run in the middle of an epoch."""


class SaveAndStop(Callback):
    """Saves at the seventh step, and ends the run there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, trainer: Trainer) -> None:
        """Once."""
        if trainer.step == 7:
            trainer.save(self.path)
            raise StoppedError


def stopped(folder: Path, *callbacks: Callback) -> Path:
    """The checkpoint of a run that was ended in the middle of its first epoch."""
    path = folder / "one.ckpt"
    with contextlib.suppress(StoppedError):
        trainer(*callbacks, SaveAndStop(path)).fit(loader())
        raise AssertionError("the run was not ended")
    return path


def entered_files(folder: Path) -> dict[str, Entered | None]:
    """Every row of the table."""
    folder.mkdir()
    path, checkpoints = stopped(folder), folder / "checkpoints"
    stopped(folder, Checkpoint(checkpoints, every=5))
    return {
        "batch to update, within fit": from_batch_to_update(),
        "whole step, within fit": step_in_fit(),
        "trainer.optimizer_step(window)": called_step(),
        "fit(epochs=1)": whole(lambda made: made.fit(loader())),
        "fit(epochs=1) with validation": whole(lambda made: made.fit(loader(), loader(32))),
        "one epoch of two": epoch_in_fit(),
        "one epoch of two, with validation": epoch_in_fit(loader(32)),
        "find_lr(num_steps=100)": whole(lambda made: made.find_lr(loader(), num_steps=100)),
        "find_lr(num_steps=300)": whole(lambda made: made.find_lr(loader(), num_steps=300)),
        "fit(resume=path)": whole(lambda made: made.fit(loader(), resume=path)),
        "fit(resume='auto')": whole(lambda made: made.fit(loader(), resume="auto"), Checkpoint(checkpoints, every=5)),
    }


# ---------------------------------------------------------------- imports and sizes


def sources() -> dict[str, Path]:
    """Every module of the project, by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The project's modules that a module imports anywhere in its text.

    `from package import name` is an import of the module `package.name` where there is one, else of the package. Names
    of modules in a call of `import_module` count as well.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            constants = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            yield from (value for value in constants if isinstance(value, str))


def circles() -> list[list[str]]:
    """Groups of modules of which each imports each, by way of others; the largest first."""
    modules = sources()
    graph = networkx.DiGraph()
    for name, path in modules.items():
        graph.add_edges_from((name, other) for other in imports(name, path, modules) if other in modules)
    groups = [sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1]
    return sorted([*groups, *([name] for name in networkx.nodes_with_selfloops(graph))], key=len, reverse=True)


def lines_of_code(text: str) -> int:
    """Lines without blank ones, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def sizes() -> dict[str, Any]:
    """Modules and lines."""
    texts = {name: path.read_text() for name, path in sources().items()}
    flat = [path.stem for path in sorted((ROOT / "mxtorch").glob("*.py"))]
    lengths = {name: text.count("\n") for name, text in texts.items()}
    return {
        "modules directly in mxtorch": [name for name in flat if not name.startswith("_")],
        "private modules directly in mxtorch": [name for name in flat if name.startswith("_")],
        "modules": len(texts),
        "lines": sum(lengths.values()),
        "lines of code": sum(lines_of_code(text) for text in texts.values()),
        "modules over 500 lines": {name: count for name, count in lengths.items() if count > 500},
    }


def import_times() -> dict[str, float]:
    """Medians, in seconds, each of several fresh processes: of torch, of mxtorch, of mxtorch where torch is there."""
    statements = {
        "torch": ("", "torch"),
        "mxtorch": ("", "mxtorch"),
        "mxtorch after torch": ("import torch", "mxtorch"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(IMPORTS):
        for name, (before, module) in statements.items():
            code = f"{before}\nimport time\nstarted = time.perf_counter()\nimport {module}\n"
            command = [sys.executable, "-c", code + "print(time.perf_counter() - started)"]
            run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            seconds[name].append(float(run.stdout))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians | {"difference": medians["mxtorch"] - medians["torch"]}


def attributes() -> list[str]:
    """Public ones of a Trainer that was trained, as `vars` shows them."""
    made = trainer()
    made.fit(loader(), loader(32))
    return [name for name in vars(made) if not name.startswith("_")]


# ---------------------------------------------------------------- the report


def report(figures: dict[str, Any]) -> None:
    """Print the figures with their names."""
    print(f"mxtorch from {figures['source']}\n")
    print(f"{'entered by':<36} files  calls from file to file")
    for name, seen in figures["entered"].items():
        if seen is None:
            print(f"{name:<36}     -  fit makes no such call")
            continue
        print(f"{name:<36} {seen['count']:>5}  {seen['crossings']}\n      {', '.join(seen['files'])}")
    size, names, groups = figures["size"], figures["attributes"], figures["circles"]
    print(f"\npublic attributes of a Trainer after fit: {len(names)}\n      {', '.join(names)}")
    print(f"circles of imports: {len(groups)}, with {', '.join(str(len(group)) for group in groups) or 'no'} modules")
    for group in groups:
        print(f"      {', '.join(group)}")
    flat, private = size["modules directly in mxtorch"], size["private modules directly in mxtorch"]
    print(f"modules directly in mxtorch: {len(flat)}, and {len(private)} with an underscore\n      {', '.join(flat)}")
    print(f"{size['modules']} modules, {size['lines']} lines, {size['lines of code']} of them code")
    print(f"modules over 500 lines: {size['modules over 500 lines'] or 'none'}")
    print("import, seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in figures["import"].items()))


def main() -> None:
    """Measure, and print a report or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        entered_files(Path(folder) / "first")  # imports what is imported on first use
        entered = entered_files(Path(folder) / "second")
    figures = {
        "source": str(ROOT),
        "entered": {name: seen and seen.report() for name, seen in entered.items()},
        "attributes": attributes(),
        "circles": circles(),
        "size": sizes(),
        "import": import_times(),
    }
    print(json.dumps(figures, indent=2)) if arguments.json else report(figures)


if __name__ == "__main__":
    main()

"""The model card in Markdown: the model, the data and settings of its training, and its results."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from mxtorch import model_zoo
from mxtorch._version import __version__
from mxtorch.data.class_balance import labels_of
from mxtorch.exporting.facts import Facts, unwrapped
from mxtorch.exporting.formats import CARD_MARK
from mxtorch.exporting.outputs import WORDS
from mxtorch.training.trainer_view import TrainerView

# If there are more classes than this, the card has their number and not their names.
MOST_NAMED = 60


def model_card(trainer: TrainerView, path: Path, facts: Facts, train_data: Any, val_data: Any, about: str) -> str:
    """The card of the model in a file. A fact that is not known is left out."""
    parts = [
        f"# {_escaped(path.stem)}",
        about.strip(),
        "## Model\n" + _lines(_model(trainer, path, facts)),
        "## Data\n" + _lines(_data(train_data, val_data, facts)),
        "## Training\n" + _lines(_training(trainer)),
        "## Results\n" + _results(trainer),
        "## Use\n" + _use(path, facts),
        f"{CARD_MARK} {__version__}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _model(trainer: TrainerView, path: Path, facts: Facts) -> list[str]:
    model: Any = unwrapped(trainer.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"Network: {facts.zoo_name or type(model).__name__}, {count / 1e6:.2f} M parameters"]
    if facts.zoo_name:
        card = model_zoo.info(facts.zoo_name)
        weights = next((each for each in card.weights if each.tag == model.zoo_weights), None)
        if weights is None:
            file = Path(getattr(model, "zoo_file", "")).name
            lines.append(f"Initial weights: {f'the file {_escaped(file)} of the user' if file else 'random'}")
        else:
            sources = ", ".join(file.url or file.name for file in weights.files[:1])
            use = "" if weights.commercial else " (not for commercial use)"
            file = Path(getattr(model, "zoo_file", "")).name or weights.files[0].name
            lines.append(f"Initial weights: `{weights.tag}`, licence {weights.licence}{use}, published at {sources}")
            lines.append(f"File of the initial weights: {_escaped(file)}")
    if facts.preprocessing is not None:
        lines.append(f"Input: pictures {_inputs(facts)}")
    lines.append(f"Output: {facts.outputs} {WORDS[facts.activation]}")
    return [*lines, f"File: {_escaped(path.name)}"]


def _inputs(facts: Facts) -> str:
    """The shape of an input, and how a picture becomes an input."""
    assert facts.preprocessing is not None
    size = facts.preprocessing.size
    height, width = size if isinstance(size, tuple) else (size or "height", size or "width")
    return f"[{facts.channels}, {height}, {width}]: {facts.preprocessing}"


def _data(train_data: Any, val_data: Any, facts: Facts) -> list[str]:
    lines = []
    for name, data in (("Training", train_data), ("Validation", val_data)):
        dataset = getattr(data, "dataset", None)
        if dataset is not None:
            size = f", {len(dataset)} samples" if hasattr(dataset, "__len__") else ""
            lines.append(f"{name}: {type(dataset).__name__}{size}{_counts(dataset, facts)}")
    if facts.classes:
        named = ", ".join(map(_escaped, facts.classes)) if len(facts.classes) <= MOST_NAMED else "see the file"
        lines.append(f"Classes ({len(facts.classes)}): {named}")
    return lines or ["Not described"]


def _counts(dataset: Any, facts: Facts) -> str:
    if not facts.classes or len(facts.classes) > MOST_NAMED:
        return ""
    try:
        counts = Counter(labels_of(dataset).tolist())
    except (TypeError, ValueError):  # the data set does not give the classes of its samples
        return ""
    return " (" + ", ".join(f"{_escaped(name)} {counts[index]}" for index, name in enumerate(facts.classes)) + ")"


def _training(trainer: TrainerView) -> list[str]:
    optimizer = trainer.optimizer.optimizer
    group = optimizer.param_groups[0]
    shown = {name: group[name] for name in ("momentum", "betas", "weight_decay") if group.get(name)}
    settings = "".join(f", {name} {value}" for name, value in shown.items())
    loss = type(trainer.loss).__name__ if hasattr(trainer.loss, "forward") else getattr(trainer.loss, "__name__", "own")
    smoothing = getattr(trainer.loss, "label_smoothing", 0.0)
    lines = [
        f"Optimizer: {type(optimizer).__name__}{settings}",
        f"Loss: {loss}" + (f", label smoothing {smoothing:g}" if smoothing else ""),
        f"{trainer.epoch} epochs, {trainer.step} steps, precision {trainer.engine.precision}",
    ]
    tuned = trainer.fine_tuning
    if tuned is None:
        return [*lines, f"Learning rate at the end: {trainer.optimizer.learning_rate:.2e}"]
    for phase, rate in tuned.rates.items():
        found = tuned.found.get(phase)
        how = "given" if found is None else f"find_lr: {found.status}"
        lines.append(f"Learning rate, {phase}: {rate:.2e} ({how})")
    return lines


def _results(trainer: TrainerView) -> str:
    rows = trainer.history.rows
    figures = {name: value for name, value in (rows[-1] if rows else {}).items() if "/" in name}
    if not figures:
        return "Not measured"
    table = "\n".join(f"| {_escaped(name)} | {value:.4f} |" for name, value in figures.items() if not math.isnan(value))
    return f"After the last epoch, {int(rows[-1]['epoch'])}:\n\n| figure | value |\n|---|---|\n{table}"


def _use(path: Path, facts: Facts) -> str:
    model = "" if facts.zoo_name or path.suffix != ".safetensors" else ", model=net"
    model = ", trusted=True" if path.suffix == ".pt2" else model  # opening a .pt2 can run code
    what = '"picture.jpg"' if facts.preprocessing else "inputs"
    lines = ["from mxtorch import exporting", "", f"exporting.load({json.dumps(path.name)}{model}).predict({what})"]
    return "```python\n" + "\n".join(lines) + "\n```"


def _escaped(text: str) -> str:
    """The text in one line, without characters that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _lines(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)

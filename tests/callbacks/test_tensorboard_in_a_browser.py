"""Looks at TensorBoard as a user does: in Chromium, where there is one, and playwright to drive it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import ScheduledOptim, Trainer

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server of TensorBoard for one run, with a search before it and a look at its mistakes after it."""
    torch.manual_seed(0)
    pictures = torch.randn(192, 3, 8, 8)
    labels = torch.bucketize(pictures.mean(dim=(1, 2, 3)), torch.tensor([-0.03, 0.03]))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pictures, labels), 32)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    groups = [
        {"params": net[0].parameters(), "lr": 0.01, "name": "body"},
        {"params": net[3].parameters(), "lr": 0.1, "name": "head"},
    ]
    folder = tmp_path_factory.mktemp("runs")
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(torch.optim.SGD(groups, momentum=0.9)),
        metrics={"accuracy": MulticlassAccuracy(num_classes=3)},
        log_dir=folder / "moons",
        device="cpu",
        progress=False,
        log_every=2,
        seed=7,
    )
    trainer.find_lr(data, data, num_steps=60, schedule="one_cycle", start_lr=1e-4, end_lr=1.0)
    trainer.fit(data, data, epochs=2, lr=0.01, schedule="one_cycle")
    trainer.interpret(data, classes=["below", "amid", "above"])
    trainer.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("tensorboard", path=str(Path(sys.executable).parent)) or shutil.which("tensorboard")
    arguments = [command, "--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", timeout=10) as answer:
                    if len(answer.read()) > 10:
                        break
            except OSError:
                pass
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


# TensorBoard's pages are made of components whose text is not in that of the page.
TEXT = """() => {
    const of = node => node.nodeType === Node.TEXT_NODE ? node.textContent
        : ["STYLE", "SCRIPT"].includes(node.nodeName) ? ""
        : [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(of).join(" ");
    return of(document.documentElement).replace(/\\s+/g, " ");
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("tab", "words"),
    [
        (
            "hparams",
            ["batch_size", "image_size", "momentum", "seed", "learning_rate/body", "learning_rate/head", "model"],
        ),
        ("timeseries", ["learning_rate", "gradient_norm", "train", "val"]),
        ("timeseries", ["lr_finder_loss_over_1000_log10_rate"]),
        ("custom_scalars", ["loss", "metrics", "learning rate", "Matches (2)"]),
        ("text&tagFilter=run", ["batch_size", "8 x 8", "The finder"]),
        ("pr_curves", ["interpretation/below", "interpretation/amid"]),
        ("images", ["interpretation/overview", "lr_finder/curve"]),
        ("projector", ["Points: 192"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_page_shows(address, browser, tab, words):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{address}/#{tab}")
    missing = list(words)
    for _ in range(60):
        seen = " ".join(frame.evaluate(TEXT) for frame in page.frames)
        missing = [word for word in words if word not in seen]
        if not missing:
            break
        time.sleep(0.5)
    page.close()
    assert not missing, f"{tab} does not show {missing}"

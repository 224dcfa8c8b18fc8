"""Asks a real TensorBoard server, over HTTP, for what a run wrote."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import ScheduledOptim, Trainer

CURVES = "lr_finder_loss_over_1000_log10_rate"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


@pytest.fixture
def server(tmp_path, net, loader):
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[1:].parameters(), "lr": 0.01}]
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        ScheduledOptim(torch.optim.SGD(groups, momentum=0.9)),
        metrics={"accuracy": MulticlassAccuracy(num_classes=2)},
        log_dir=tmp_path / "runs" / "moons",
        device="cpu",
        progress=False,
        log_every=4,
    )
    found = trainer.find_lr(loader, method="sweep", start_lr=1e-4, end_lr=1000, schedule="one_cycle")
    tried = trainer.find_lr(loader, num_steps=60, schedule="one_cycle")
    trainer.fit(loader, loader, epochs=3, lr=found.suggestion, schedule="one_cycle")
    trainer.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("tensorboard", path=str(Path(sys.executable).parent)) or shutil.which("tensorboard")
    assert command is not None
    arguments = [command, "--logdir", str(tmp_path / "runs"), "--port", str(port), "--host", "127.0.0.1"]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def ask(path, **query):
            url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())

        def post(path, content):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/data/{path}",
                json.dumps(content).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())

        ask.post = post
        for _ in range(240):
            try:
                if ask("plugin/scalars/tags"):
                    break
            except OSError:
                pass
            time.sleep(0.25)
        yield ask, trainer, found, tried
        process.terminate()


def test_a_server_shows_everything(server):
    ask, trainer, found, tried = server
    tags = ask("plugin/scalars/tags")
    searches = ["moons/lr_finder", "moons/lr_finder-2"]
    assert sorted(tags) == ["moons", *searches], "one run, hparams included, and those of the searches"
    assert set(tags["moons"]) >= {
        "train/loss",
        "val/loss",
        "val/accuracy",
        "learning_rate/group0",
        "learning_rate/group1",
        "gradient_norm",
        "samples_per_second",
    }
    assert f"{CURVES}/training" in tags["moons/lr_finder"]

    def scalars(tag, run=None):
        run = run or ("moons/lr_finder" if tag.startswith("lr_finder") else "moons")
        return ask("plugin/scalars/scalars", tag=tag, run=run)

    records = trainer.history.records
    assert [step for _, step, _ in scalars("learning_rate/group0")] == [record["step"] for record in records]
    rates = [value for _, _, value in scalars("learning_rate/group1")]
    assert rates == pytest.approx([record["learning_rate/group1"] for record in records], rel=1e-5)
    accuracy = [value for _, _, value in scalars("val/accuracy")]
    assert accuracy == pytest.approx(trainer.history["val/accuracy"], rel=1e-5)
    curve = scalars(f"{CURVES}/training")
    assert [10 ** (position / 1000) for _, position, _ in curve] == pytest.approx(found.rates, rel=2e-3)
    assert [value for _, _, value in curve] == pytest.approx(found.losses, rel=1e-5)
    held_out = scalars(f"{CURVES}/held_out")
    assert [value for _, _, value in held_out] == pytest.approx([loss for _, loss in found.held_out], rel=1e-5)
    last = tried.trials[-1]
    losses = scalars(f"{CURVES}/after_{last.steps}_steps", "moons/lr_finder-2")
    assert [value for _, _, value in losses if value == pytest.approx(last.loss, rel=1e-5)]
    assert "lr_finder/curve" in ask("plugin/images/tags")["moons/lr_finder"]
    experiment = ask.post("plugin/hparams/experiment", {"experimentName": ""})
    names = {entry["name"] for entry in experiment["hparamInfos"]}
    assert {"learning_rate", "optimizer", "precision", "schedule"} <= names
    groups = ask.post(
        "plugin/hparams/session_groups",
        {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "colParams": [{"metric": {"group": "", "tag": "val/accuracy"}}],
            "startIndex": 0,
            "sliceSize": 10,
        },
    )["sessionGroups"]
    assert len(groups) == 1
    assert groups[0]["hparams"]["optimizer"] == "SGD"
    metrics = {entry["name"]["tag"]: entry["value"] for entry in groups[0]["metricValues"]}
    assert metrics["val/accuracy"] == pytest.approx(trainer.history["val/accuracy"][-1], rel=1e-5)

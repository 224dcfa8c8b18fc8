"""Each logger against the real library, where it is installed."""

import contextlib
import copy
import csv
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint, CSVLogger, Logger, MLflowLogger, TrackioLogger, WandbLogger
from mxtorch.engines.local import LocalEngine

VALIDATED = [(torch.randn(8, 8), torch.randint(2, (8,)))]


class Kill(Callback):
    def __init__(self, at):
        self.at = at

    def on_step(self, trainer):
        if trainer.step == self.at:
            raise KeyboardInterrupt


class InMemory(Logger):
    """What a logger of one's own gets."""

    def __init__(self):
        self.settings, self.events, self.finished, self.begun = None, [], 0, []

    def start(self, settings, identity, step):
        self.settings = dict(settings)
        self.begun.append((identity, step))
        return "a run"

    def log(self, figures, step):
        self.events.append((step, dict(figures)))

    def finish(self):
        self.finished += 1


def run(loader, logger, folder=None, *, kill=None, resume=None, epochs=2):
    torch.manual_seed(0)
    net = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    callbacks = [logger, *([] if folder is None else [Checkpoint(folder, every=1)]), Kill(kill)]
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), optimizer, callbacks=callbacks, device="cpu", progress=False, log_every=3
    )
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(loader, VALIDATED, epochs=epochs, validate_every=4, schedule="one_cycle", resume=resume)
    return trainer


def test_the_protocol(loader):
    logger = InMemory()
    trainer = run(loader, logger)
    assert [step for step, _ in logger.events] == [3, 4, 6, 8, 8, 9, 12, 12, 15, 16, 16]
    assert logger.events[-1][1] == trainer.history.rows[-1]
    assert logger.events[1][1].keys() == {"val/loss"}
    assert logger.settings["optimizer"] == "SGD"
    assert logger.settings["schedule"] == "OneCycle"
    assert logger.begun == [(None, 0)]
    assert logger.finished == 0
    trainer.fit(loader, schedule="constant")
    assert logger.begun == [(None, 0)], "a further fit goes on in the same run"
    trainer.close()
    trainer.close()
    assert logger.finished == 1
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        assert twin.identity is None


def test_a_resumed_run_has_the_identity(loader, tmp_path):
    run(loader, InMemory(), tmp_path, kill=11)
    logger = InMemory()
    run(loader, logger, tmp_path, resume="auto")
    assert logger.begun == [("a run", 10)]


def test_only_the_main_process_logs(loader, monkeypatch):
    monkeypatch.setattr(LocalEngine, "is_main", False)
    logger = InMemory()
    run(loader, logger)
    assert logger.events == logger.begun == []


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv(loader, tmp_path):
    path = tmp_path / "logs" / "run.csv"
    trainer = run(loader, CSVLogger(path))
    rows = rows_of(path)
    assert [int(row["step"]) for row in rows] == [3, 4, 6, 8, 8, 9, 12, 12, 15, 16, 16]
    assert float(rows[-1]["val/loss"]) == trainer.history["val/loss"][-1]
    assert rows[0]["val/loss"] == ""
    assert json.loads(path.with_suffix(".json").read_text())["model"] == "Linear"
    with pytest.raises(ValueError, match="another run"):
        run(loader, CSVLogger(path))
    assert rows_of(path) == rows
    trainer.close()


def test_csv_goes_on_after_the_steps_of_the_checkpoint(loader, tmp_path):
    whole, parts = tmp_path / "whole.csv", tmp_path / "run.csv"
    run(loader, CSVLogger(whole), tmp_path / "a")
    run(loader, CSVLogger(parts), tmp_path / "b", kill=13)
    run(loader, CSVLogger(parts), tmp_path / "b", resume="auto")
    timed = ("seconds", "samples_per_second")
    expected, found = (
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(path)] for path in (whole, parts)
    )
    assert found == expected


def test_csv_in_a_place_that_can_not_be_written(loader, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        run(loader, CSVLogger(tmp_path / "file" / "run.csv"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow(loader, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    logger = MLflowLogger("dogs", tracking_uri=uri)
    run(loader, logger, tmp_path / "a", kill=13)
    again = MLflowLogger("dogs", tracking_uri=uri)
    trainer = run(loader, again, tmp_path / "a", resume="auto")
    trainer.close()
    assert again.identity == logger.identity
    client = mlflow.MlflowClient(tracking_uri=uri)
    seen = client.get_run(logger.identity)
    assert seen.info.status == "FINISHED"
    assert seen.data.params["optimizer"] == "SGD"
    assert seen.data.metrics["val/loss"] == trainer.history["val/loss"][-1]
    assert {16, 4} <= {metric.step for metric in client.get_metric_history(logger.identity, "val/loss")}


@pytest.mark.filterwarnings("ignore")
def test_wandb(loader, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger("dogs", mode="offline", dir=str(tmp_path), config={"note": "short"},
                         settings=wandb.Settings(x_disable_stats=True))  # fmt: skip
    trainer = run(loader, logger)
    summary, config = dict(logger.run.summary), dict(logger.run.config)
    trainer.close()
    assert summary["step"] == 16
    assert summary["val/loss"] == trainer.history["val/loss"][-1]
    assert (config["optimizer"], config["note"]) == ("SGD", "short")
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert folder.name.endswith(logger.identity)


@pytest.mark.filterwarnings("ignore")
def test_trackio(loader, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logger = TrackioLogger("dogs", auto_log_cpu=False, auto_log_gpu=False)
    trainer = run(loader, logger)
    trainer.close()
    logs = SQLiteStorage.get_logs("dogs", logger.identity)
    assert {log["step"] for log in logs} == {3, 4, 6, 8, 9, 12, 15, 16}
    assert [log["val/loss"] for log in logs if "val/loss" in log][-1] == trainer.history["val/loss"][-1]


def test_the_libraries_are_imported_when_a_run_begins():
    code = (
        "import sys, mxtorch.callbacks as c; c.WandbLogger('p'); c.MLflowLogger(); c.TrackioLogger('p'); "
        "assert not {'wandb', 'mlflow', 'trackio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Each logger against the real library, where it is installed."""

import contextlib
import copy
import csv
import json
import pickle
import shutil
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from mxtorch import Callback, Trainer
from mxtorch.callbacks import Checkpoint, CSVLogger, Logger, MLflowLogger, TrackioLogger, WandbLogger
from mxtorch.engines.local import LocalEngine

VALIDATED = [(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)]


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


@pytest.mark.parametrize("kill", [3, 7, 8, 11, 13, 16])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_resumed_run_logs_what_is_not_there(loader, tmp_path, kill, by_name):
    """A library that keeps all that it is given: each event is there as in a run that was not broken off."""
    library = []

    class Keeps(InMemory):
        def log(self, figures, step):
            super().log(figures, step)
            library.extend((step, name) for name in figures)

        def resume(self, step):
            asked.append(step)
            if not by_name:
                return max((step for step, _ in library), default=None)
            return {name: max(step for step, one in library if one == name) for _, name in library}

    asked = []
    run(loader, Keeps(), tmp_path / "whole")
    assert asked == []
    expected, library[:] = list(library), []
    saved = kill - 3  # an older checkpoint, as where the latest was damaged
    run(loader, Keeps(), tmp_path / "parts", kill=kill)
    for path in (tmp_path / "parts").glob("*.ckpt"):
        if path.is_symlink() or int(path.stem.split("-")[1]) > saved:
            path.unlink()
    resumed = bool(list((tmp_path / "parts").glob("*.ckpt")))
    before = list(library)
    run(loader, Keeps(), tmp_path / "parts", resume="auto" if resumed else None)
    if not resumed:
        assert asked == []
        return
    assert asked == [saved]
    twice = [event for event in library[len(before) :] if event in before]
    if by_name:
        assert twice == []
        assert sorted(set(library)) == sorted(set(expected))
    else:
        assert {step for step, _ in twice} <= {max(step for step, _ in before)}
        assert sorted(set(library)) == sorted(set(expected))


def test_steps_of_a_rollback_are_logged(loader, tmp_path):
    class Keeps(InMemory):
        def resume(self, step):
            return max((step for step, _ in self.events), default=None)

    class Spoil(Callback):
        done = False

        def on_step(self, trainer):
            if trainer.step == 13 and not self.done:
                self.done = True
                with torch.no_grad():
                    trainer.model.weight.fill_(float("nan"))

    logger = Keeps()
    net = nn.Linear(8, 2)
    trainer = Trainer(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cpu", progress=False,
        log_every=3, callbacks=[logger, Spoil(), Checkpoint(tmp_path, every="epoch")], on_nonfinite="rollback",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="half|rate"):
        trainer.fit(loader, epochs=2, schedule="constant")
    assert [step for step, _ in logger.events] == [3, 6, 8, 8, 9, 12, 9, 12, 15, 16, 16]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_new_run_after_load_is_logged(loader, tmp_path, resumed):
    """Its figures are others than those that the library has of the same steps."""

    class Keeps(InMemory):
        def resume(self, step):
            return 10**9 if resumed else max((step for step, _ in self.events), default=None)

    logger, file = Keeps(), tmp_path / "step-00000014.ckpt"
    trainer = run(loader, logger, tmp_path)
    if resumed:  # nor do the steps count that a resumed run has left out
        logger = Keeps()
        trainer = run(loader, logger, tmp_path, resume=file)
        assert logger.events == []
    trainer.load(file)
    before = len(logger.events)
    trainer.fit(loader, lr=1.0, schedule="constant")
    assert [step for step, _ in logger.events[before:]] == [15, 18, 21, 22, 22]
    assert logger.events[-1][1] == trainer.history.rows[-1]


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


@pytest.mark.parametrize("companion", ["as it was", "lost", "damaged"])
def test_csv_of_another_run_with_the_same_name_is_not_written_over(loader, tmp_path, companion):
    run(loader, CSVLogger(tmp_path / "a" / "log.csv"), tmp_path / "run", kill=13)
    other = tmp_path / "b" / "log.csv"
    run(loader, CSVLogger(other))
    rows = rows_of(other)
    if companion != "as it was":
        other.with_suffix(".json").write_text("{")
    if companion == "lost":
        other.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="another run"):
        run(loader, CSVLogger(other), tmp_path / "run", resume="auto")
    assert rows_of(other) == rows


def test_csv_of_a_run_that_was_killed_before_its_first_checkpoint(loader, tmp_path):
    path, whole = tmp_path / "run.csv", tmp_path / "whole.csv"
    run(loader, CSVLogger(whole), tmp_path / "a")
    for _ in range(2):
        run(loader, CSVLogger(path), tmp_path / "b", kill=3, resume="auto")
        shutil.rmtree(tmp_path / "b")
    run(loader, CSVLogger(path), tmp_path / "b", resume="auto")
    assert [row["step"] for row in rows_of(path)] == [row["step"] for row in rows_of(whole)]
    aside = [path.with_name(f"{name}.aside{ending}") for name in ("run.csv", "run.json") for ending in ("", "-2")]
    assert all(one.exists() for one in aside)


def test_csv_goes_on_in_another_place(loader, tmp_path):
    """In a new file; or in its own, moved with the JSON file."""
    path, moved = tmp_path / "log.csv", tmp_path / "moved" / "figures.csv"
    run(loader, CSVLogger(path), tmp_path / "run", kill=13)
    moved.parent.mkdir()
    path.rename(moved)
    path.with_suffix(".json").rename(moved.with_suffix(".json"))
    run(loader, CSVLogger(moved), tmp_path / "run", kill=15, resume="auto")
    assert [int(row["step"]) for row in rows_of(moved)] == [3, 4, 6, 8, 8, 9, 12, 12, 15]
    run(loader, CSVLogger(tmp_path / "new.csv"), tmp_path / "run", resume="auto")
    assert [int(row["step"]) for row in rows_of(tmp_path / "new.csv")] == [15, 16, 16]


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
    whole = MLflowLogger("dogs", tracking_uri=uri)
    run(loader, whole, tmp_path / "whole").close()
    names = client.get_run(whole.identity).data.metrics
    assert names.keys() == seen.data.metrics.keys()
    for name in names:
        expected, found = (
            sorted(metric.step for metric in client.get_metric_history(one.identity, name)) for one in (whole, logger)
        )
        assert found == expected, name
    assert sorted(metric.step for metric in client.get_metric_history(logger.identity, "val/loss")) == [4, 8, 12, 16]


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
def test_wandb_offline_goes_on_in_a_run_of_its_own(loader, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    options = {"mode": "offline", "dir": str(tmp_path), "settings": wandb.Settings(x_disable_stats=True)}
    steps = []

    class Watched(WandbLogger):
        def log(self, figures, step):
            steps.append(step)
            super().log(figures, step)

    first, second = WandbLogger("dogs", **options), Watched("dogs", **options)
    run(loader, first, tmp_path / "a", kill=13).close()
    trainer = run(loader, second, tmp_path / "a", resume="auto")
    assert second.identity != first.identity
    assert second.run.summary["step"] == 16
    assert steps == [15, 16, 16], "what follows the checkpoint of step 12, whose validation was the best so far"
    trainer.close()


def test_wandb_goes_on_after_the_steps_that_it_has(loader, tmp_path, monkeypatch):
    """A run of a server comes back with its summary (`wandb.sdk.wandb_run.Run._set_run_obj`)."""
    runs = {}

    class Run:
        def __init__(self, id):
            self.id, self.logged, self.summary = id, [], {}

        def log(self, figures):
            self.logged.append((figures["step"], sorted(figures)))
            self.summary |= figures

        def define_metric(self, name, step_metric):
            pass

    def init(*, id=None, resume=None, **options):
        assert (id is None) == (resume is None)
        name = id or f"run-{len(runs)}"
        return runs.setdefault(name, Run(name))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    run(loader, WandbLogger("dogs"), tmp_path / "whole")
    run(loader, WandbLogger("dogs"), tmp_path / "a", kill=13)
    checkpoints = sorted((tmp_path / "a").glob("step-*.ckpt"))
    checkpoints[-1].unlink()
    (tmp_path / "a" / "last.ckpt").unlink(missing_ok=True)
    run(loader, WandbLogger("dogs"), tmp_path / "a", resume="auto")
    whole, parts = runs.values()
    twice = [event for index, event in enumerate(parts.logged) if event in parts.logged[:index]]
    assert [step for step, _ in twice] == [12, 12], "the record and the validation of the last step"
    assert sorted(parts.logged) == sorted([*whole.logged, *twice])


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
    first = TrackioLogger("dogs", auto_log_cpu=False, auto_log_gpu=False)
    run(loader, first, tmp_path / "a", kill=13).close()
    for path in sorted((tmp_path / "a").glob("step-*.ckpt"))[-2:]:
        path.unlink()
    again = TrackioLogger("dogs", auto_log_cpu=False, auto_log_gpu=False)
    run(loader, again, tmp_path / "a", resume="auto").close()
    assert again.identity == first.identity
    steps = [[log["step"] for log in SQLiteStorage.get_logs("dogs", one.identity)] for one in (logger, first)]
    assert sorted(steps[1]) in (sorted(steps[0]), sorted([*steps[0], 12, 12])), "the last step alone may be twice"
    assert [log["val/loss"] for log in logs if "val/loss" in log][-1] == trainer.history["val/loss"][-1]


def test_the_libraries_are_imported_when_a_run_begins():
    code = (
        "import sys, mxtorch.callbacks as c; c.WandbLogger('p'); c.MLflowLogger(); c.TrackioLogger('p'); "
        "assert not {'wandb', 'mlflow', 'trackio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

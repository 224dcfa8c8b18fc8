"""Figures in MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mxtorch.callbacks.loggers.base import Logger

RATE_OF_EPOCH = "learning_rate/epoch"


class MLflowLogger(Logger):
    """Logs to a run of MLflow (`pip install mlflow`, or `mlflow-skinny`).

    MLflow keeps every figure that it is given, so a run that is resumed leaves out what it has already.

    The rate of an epoch's row is named `learning_rate/epoch`: in a folder MLflow can't keep a `learning_rate` beside
    the `learning_rate/group0` of the steps.

    Args:
        experiment: The name of the experiment, which is created where there is none.
        tracking_uri: The address of a server, of a database (`"sqlite:///mlflow.db"`) or of a folder; MLflow's own
            default when left out.
        run_name: The name of the run; MLflow makes one up when left out.

    Attributes:
        client: The `mlflow.MlflowClient`; None before the first epoch.
    """

    def __init__(self, experiment: str = "Default", *, tracking_uri: str | None = None, run_name: str | None = None):
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.run_name = run_name
        self.client: Any = None

    def start(self, settings: Mapping[str, Any], identity: str | None, step: int) -> str:
        """Open a run, or go on with the one of a checkpoint."""
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.tracking_uri)
        if identity is not None:
            self.client.update_run(identity, status="RUNNING")
            return identity
        found = self.client.get_experiment_by_name(self.experiment)
        number = self.client.create_experiment(self.experiment) if found is None else found.experiment_id
        run = self.client.create_run(number, run_name=self.run_name)
        for name, value in settings.items():
            self.client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)

    def resume(self, step: int) -> Mapping[str, int]:
        """The last step of each figure, as MLflow has it."""
        names = self.client.get_run(self.identity).data.metrics
        histories = {name: self.client.get_metric_history(self.identity, name) for name in names}
        last = {name: max(metric.step for metric in history) for name, history in histories.items()}
        return {"learning_rate" if name == RATE_OF_EPOCH else name: step for name, step in last.items()}

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures of a step, together."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {RATE_OF_EPOCH if name == "learning_rate" else name: value for name, value in figures.items()}
        self.client.log_batch(self.identity, metrics=[Metric(name, v, now, step) for name, v in named.items()])

    def finish(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.identity)

    def __getstate__(self) -> dict[str, Any]:
        """Without the client."""
        return super().__getstate__() | {"client": None}

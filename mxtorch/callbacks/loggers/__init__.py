"""Loggers beside TensorBoard: CSV files, Weights & Biases, MLflow, Trackio, and the protocol for one's own.

The libraries are imported when a run begins.
"""

from mxtorch.callbacks.loggers.base import Logger
from mxtorch.callbacks.loggers.csv_file import CSVLogger
from mxtorch.callbacks.loggers.mlflow_run import MLflowLogger
from mxtorch.callbacks.loggers.trackio_run import TrackioLogger
from mxtorch.callbacks.loggers.wandb_run import WandbLogger

__all__ = ["CSVLogger", "Logger", "MLflowLogger", "TrackioLogger", "WandbLogger"]

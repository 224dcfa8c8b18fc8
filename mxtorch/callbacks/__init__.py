"""What happens beside the loop: hooks, and the callbacks that come with the library."""

from mxtorch.callbacks.averaging import EMA, SWA
from mxtorch.callbacks.checkpoint import Checkpoint
from mxtorch.callbacks.early_stopping import BestWeights, EarlyStopping
from mxtorch.callbacks.freezing import Freeze, Unfreeze
from mxtorch.callbacks.loggers import CSVLogger, Logger, MLflowLogger, TrackioLogger, WandbLogger
from mxtorch.callbacks.progress import ProgressBar
from mxtorch.callbacks.tensorboard import TensorBoard
from mxtorch.training.callback import Callback, CallbackList

__all__ = [
    "EMA",
    "SWA",
    "BestWeights",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "Checkpoint",
    "EarlyStopping",
    "Freeze",
    "Logger",
    "MLflowLogger",
    "ProgressBar",
    "TensorBoard",
    "TrackioLogger",
    "Unfreeze",
    "WandbLogger",
]

"""What happens beside the loop: hooks, and the callbacks that come with the library."""

from mxtorch.callbacks.base import Callback, CallbackList
from mxtorch.callbacks.checkpoint import Checkpoint
from mxtorch.callbacks.progress import ProgressBar
from mxtorch.callbacks.tensorboard import TensorBoard

__all__ = ["Callback", "CallbackList", "Checkpoint", "ProgressBar", "TensorBoard"]

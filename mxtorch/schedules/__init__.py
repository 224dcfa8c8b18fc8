"""Learning-rate schedules: functions of the step that give a multiplier of the base rate.

The base rate is the highest rate of a schedule. A schedule is a frozen dataclass: it can be printed, compared, pickled,
plotted, and resumed from one integer. Lengths are in optimizer steps. Those that are left out (None) are filled in from
the run by `Trainer.fit`, or by `for_steps`. A schedule that has an end keeps its last value afterwards; the cyclic
schedules go on. `OneCycle` and the triangular schedules give a momentum for each step, too.

    >>> from mxtorch import schedules
    >>> schedule = schedules.OneCycle().for_steps(100)
    >>> [round(schedule(step), 3) for step in (0, 29, 99)]
    [0.04, 1.0, 0.0]
"""

from mxtorch.schedules.base import Schedule, ScheduleFunction, cycles_momentum, momentum_of
from mxtorch.schedules.combination import Chained, Sequential
from mxtorch.schedules.constant import Constant
from mxtorch.schedules.cosine import CosineAnnealing, CosineRestarts, FlatCosine, WarmupCosine
from mxtorch.schedules.cyclic import ExpRange, OneCycle, Triangular, Triangular2
from mxtorch.schedules.decay import Exponential, MultiStep, Step
from mxtorch.schedules.plotting import plot
from mxtorch.schedules.polynomial import REX, InverseSquareRoot, Polynomial
from mxtorch.schedules.registry import ScheduleName, from_dict, get, is_savable, name_of
from mxtorch.schedules.warmup import WarmupConstant, WarmupLinear, WarmupStableDecay

__all__ = [
    "REX",
    "Chained",
    "Constant",
    "CosineAnnealing",
    "CosineRestarts",
    "ExpRange",
    "Exponential",
    "FlatCosine",
    "InverseSquareRoot",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "ScheduleFunction",
    "ScheduleName",
    "Sequential",
    "Step",
    "Triangular",
    "Triangular2",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "cycles_momentum",
    "from_dict",
    "get",
    "is_savable",
    "momentum_of",
    "name_of",
    "plot",
]

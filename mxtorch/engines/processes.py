"""The processes that train together: how they were started, and what they tell one another.

Numbers on a device go through the backend of the device (NCCL, gloo). Everything else, which is small and on the host,
goes through a gloo group of its own, so that no accelerator is waited for.
"""

from __future__ import annotations

import datetime
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

# What launchers call the rank, the number of processes, and both on one machine: torchrun and `accelerate launch`, Open
# MPI, Intel MPI and MPICH. A step of SLURM is read apart, since its names are there in the batch script as well; and
# `srun --mpi=pmi2` sets the first two of the PMI names, whose others are of Intel MPI.
_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_SLURM_NAMES = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
# A collective that takes longer has lost a process that nobody saw go.
TIMEOUT = datetime.timedelta(minutes=30)

_control: tuple[Any, Any] | None = None  # the default group, and the group for the host beside it


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that were started together.

    Attributes:
        rank: From 0, which is the main process.
        world_size: The number of processes.
        local_rank: The rank on this machine, which picks the device.
        local_world_size: The number of processes on this machine.
        address: `MASTER_ADDR`, where the main process is; None where the launcher has set it, or it is this machine.
        port: `MASTER_PORT`, likewise.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str | None = None
    port: int | None = None


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """How this process was started together with others; None where it was started alone.

    Args:
        environment: Variables that torchrun, `accelerate launch`, `mpirun` or `srun` set.

    Raises:
        ValueError: The variables are incomplete.

    >>> launched({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    Launch(rank=1, world_size=2, local_rank=1, local_world_size=2, address=None, port=None)
    >>> launched({"WORLD_SIZE": "1"}) is None
    True
    """
    for rank, world_size, local_rank, local_world_size in _NAMES:
        if rank == "PMI_RANK" and _is_task_of_slurm(environment, rank, world_size):
            continue  # SLURM knows the rank on this machine, and where the main process is
        if int(environment.get(world_size, "1")) > 1:
            if rank not in environment:
                raise ValueError(
                    f"{world_size}: it says that {environment[world_size]} processes were started, and there is no "
                    f"{rank}; start them with torchrun, or unset {world_size}"
                )
            count = int(environment[world_size])
            own = int(environment[rank])
            return Launch(
                own, count, int(environment.get(local_rank, own)), int(environment.get(local_world_size, count))
            )
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        own, count, local = (int(environment.get(name, "0")) for name in _SLURM_NAMES)
        here = _tasks_here(environment)
        job = int(environment.get("SLURM_JOB_ID", "0"))
        address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
        return Launch(own, count, local, here, address, int(environment.get("MASTER_PORT", 12_000 + job % 20_000)))
    return None


def _is_task_of_slurm(environment: Mapping[str, str], rank: str, world_size: str) -> bool:
    """Whether a step of SLURM has started the processes itself.

    SLURM starts the `mpirun` of MPICH once a machine, and that numbers the processes that it starts.
    """
    same = {rank: "SLURM_PROCID", world_size: "SLURM_STEP_NUM_TASKS"}
    return all(name in environment and environment[name] == environment.get(own) for name, own in same.items())


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it.

    >>> first_host("gpu[07-09,12],login1"), first_host("node3")
    ('gpu07', 'node3')
    """
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        return nodes
    prefix, number, suffix = match.groups()
    return f"{prefix}{number or ''}{suffix or ''}"


def _tasks_here(environment: Mapping[str, str]) -> int:
    """The tasks of a step of SLURM on this machine, from a list such as `2(x3),1`."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is not None:
            counts += [int(match[1])] * int(match[2] or 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else 1


def join(launch: Launch, device_type: str) -> None:
    """Make the process group, where there is none yet, and tell Accelerate by the variables that it reads."""
    values = {
        "RANK": launch.rank,
        "WORLD_SIZE": launch.world_size,
        "LOCAL_RANK": launch.local_rank,
        "LOCAL_WORLD_SIZE": launch.local_world_size,
        "MASTER_ADDR": launch.address or "localhost",
        "MASTER_PORT": launch.port or 29_500,
    }
    for name, value in values.items():
        os.environ.setdefault(name, str(value))
    if dist.is_initialized():
        return
    if device_type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    dist.init_process_group(BACKENDS.get(device_type), timeout=TIMEOUT)


def control_group() -> Any:
    """The gloo group for what is on the host; made when it is first asked for, by all processes together."""
    global _control
    default = dist.group.WORLD
    if _control is None or _control[0] is not default:
        _control = (default, dist.new_group(backend="gloo", timeout=TIMEOUT))
    return _control[1]


def broadcast(value: Any) -> Any:
    """The value that the main process gave; any object that can be pickled."""
    packed = [_packed(value) if dist.get_rank() == 0 else b""]
    dist.broadcast_object_list(packed, src=0, group=control_group(), device=torch.device("cpu"))
    return _unpacked(packed[0])


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order, on all of them."""
    packed: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(packed, _packed(value), group=control_group())
    return list(map(_unpacked, packed))


def _packed(value: Any) -> bytes:
    """As torch saves it: pickled tensors of some kinds can't be read again."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)  # from this run's own processes


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    raised = torch.tensor(int(flag))
    dist.all_reduce(raised, dist.ReduceOp.MAX, group=control_group())
    return bool(raised)


class Dealing:
    """How data are dealt to this process; see `mxtorch.data.sharding`.

    It is not what a search puts back of a loader, since it changes within one.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.whole = False
        self.broadcast, self.gather = broadcast, gather

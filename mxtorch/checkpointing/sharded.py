"""Checkpoints of sharded models: a folder with torch's distributed checkpoint, to which each process writes its parts.

What is sharded goes there (`torch.distributed.checkpoint`, which puts it together for any number of processes);
everything else into the file `trainer.ckpt` beside it. The folder is made under another name, and takes its own once it
is whole.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mxtorch.checkpointing import file
from mxtorch.checkpointing.file import CheckpointError

PLAIN_FILE = "trainer.ckpt"
_KEY, _SHAPE, _DTYPE = "sharded", "shape", "dtype"
_METADATA = ".metadata"


def split(content: Any) -> tuple[Any, dict[str, Tensor]]:
    """A checkpoint's content with names in place of what is sharded, and that by its names."""
    tensors: dict[str, Tensor] = {}
    return _split(content, "", tensors), tensors


def _is_distributed(value: Any) -> bool:
    """Whether each process holds a part of a tensor."""
    from torch.distributed.tensor import DTensor  # with it come more modules than with all of mxtorch

    return isinstance(value, DTensor)


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if _is_distributed(value):
        tensors[place] = value
        return {_KEY: place, _SHAPE: list(value.shape), _DTYPE: value.dtype}
    if isinstance(value, dict):
        replaced = {name: _split(item, f"{place}/{name}", tensors) for name, item in value.items()}
        return replaced if any(replaced[name] is not item for name, item in value.items()) else value
    if isinstance(value, (list, tuple)):
        return type(value)(_split(item, f"{place}/{index}", tensors) for index, item in enumerate(value))
    return value


def write(path: Path, content: dict[str, Any], tensors: dict[str, Tensor], group: Any, *, is_main: bool) -> None:
    """Write a checkpoint; all processes together.

    Args:
        path: The folder that it becomes, in one that exists for all processes.
        content: What is not sharded; the main process writes it.
        tensors: What is sharded, of which each process writes its parts.
        group: For what the processes tell one another meanwhile, and for nothing else.
        is_main: Whether this is the main process.

    Raises:
        OSError: The folder can't be written; an older one of that name is untouched.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    temporary = path.with_name(f".{path.name}.tmp")
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    dist.barrier(group)
    save(tensors, storage_writer=FileSystemWriter(temporary), process_group=group)
    if not is_main:
        return
    file.write(temporary / PLAIN_FILE, content)
    for written in temporary.iterdir():
        _sync(written)
    file.sync_folder(temporary)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    file.sync_folder(path.parent)


def read(path: Path) -> dict[str, Any]:
    """What is not sharded of a checkpoint, with names in place of what is.

    Raises:
        CheckpointError: It is damaged, or none.
    """
    if not (path / _METADATA).is_file() or not (path / PLAIN_FILE).is_file():
        raise CheckpointError(f"{path} is a folder, and no checkpoint of a sharded model")
    return file.read(path / PLAIN_FILE)


def fill(content: Any, path: Path, like: Any) -> Any:
    """Put what is sharded back into a content; all processes together, where the model is sharded here.

    Args:
        content: What `read` gave.
        path: The checkpoint.
        like: A parameter of the model; if it is sharded, what is read is sharded as it is, otherwise whole.

    Raises:
        CheckpointError: It is damaged.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors: dict[str, Tensor] = {}
    filled = _fill(content, tensors, like.device_mesh if _is_distributed(like) else None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that one process reads it
            load(
                tensors,
                storage_reader=FileSystemReader(path),
                no_dist=not _is_distributed(like),
            )
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {str(error)[:300]}") from error
    return filled


def _fill(value: Any, tensors: dict[str, Tensor], mesh: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_KEY, _SHAPE, _DTYPE}:
            shape, dtype = value[_SHAPE], value[_DTYPE]
            if mesh is None:
                tensor = torch.zeros(shape, dtype=dtype)
            else:
                from torch.distributed.tensor import Shard, zeros

                tensor = zeros(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
            tensors[value[_KEY]] = tensor
            return tensor
        return {name: _fill(item, tensors, mesh) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_fill(item, tensors, mesh) for item in value)
    return value


def is_sharded(path: str | Path) -> bool:
    """Whether a checkpoint is a folder."""
    return Path(path).is_dir()


def _sync(path: Path) -> None:
    with open(path, "rb") as written:
        os.fsync(written.fileno())

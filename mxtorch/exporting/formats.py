"""The formats of a model file: safetensors (weights and facts), torch.export and ONNX (also the computation)."""

from __future__ import annotations

import copy
import mmap
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from mxtorch._checks import closest
from mxtorch.checkpointing.file import atomic_file, first_line
from mxtorch.exporting.facts import FORMAT, KEY, Facts, plain_state, unwrapped
from mxtorch.exporting.limits import remember

# The largest difference between the outputs of a file and of the model, relative to their scale. Kernels round
# differently.
TOLERANCE = 1e-3
CARD_MARK = "Written by mxtorch"  # every model card has this text


def write(model: nn.Module, path: Path, facts: Facts, example: Tensor | None) -> None:
    """Write a model in the format of the path's ending, and check that the file gives the outputs of the model.

    An old file stays until the new file has passed the check.

    Raises:
        ValueError: The ending is unknown, an example is missing, the model can't be exported, or the outputs differ.
        ModuleNotFoundError: ONNX needs the extra `onnx`.
        OSError: The file can't be written.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(f"path: got the ending {path.suffix!r}{closest(path.suffix, _WRITERS)}")
    if not path.parent.is_dir():
        raise ValueError(f"path: the folder {path.parent} does not exist; create it first")
    if example is None and path.suffix != ".safetensors":
        raise ValueError(f"example: {path.suffix} needs a batch of inputs; give val_data, or example=")
    # A copy on the CPU: exporting must not change the model.
    plain = copy.deepcopy(unwrapped(model)).cpu().eval()
    plain.to(memory_format=torch.contiguous_format)
    example = None if example is None else example.detach().cpu().contiguous()
    with atomic_file(path) as file:
        _WRITERS[path.suffix](plain, file, facts, example)
        file.flush()
        if example is not None and (path.suffix != ".safetensors" or facts.zoo_name):
            _check(plain, Path(file.name), path.suffix, example)
        if path.suffix == ".pt2":
            remember(Path(file.name).read_bytes())


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raise a ValueError if an export would replace something that `Trainer.export` did not write.

    Args:
        path: The path at which a model or its card will be written.
        overwrite: Whether the user wants to replace anything that is at this path.

    Raises:
        ValueError: A link, a folder, or a file that no export wrote is at this path, and `overwrite` is False.
    """
    if overwrite or not os.path.lexists(path) or _is_ours(path):
        return
    raise ValueError(
        f"path: {path} exists and was not written by an export; give another path, or overwrite=True to replace it"
    )


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(CARD_MARK.encode() if path.suffix == ".md" else FORMAT.encode()) >= 0


def _check(model: nn.Module, path: Path, suffix: str, example: Tensor) -> None:
    from mxtorch.exporting.predictor import read

    predictor = read(path, suffix)
    for inputs in (example, example[:1]):  # the file must take any number of samples
        with torch.no_grad():
            expected = model(inputs)
        found = predictor(inputs)
        difference = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
        if found.shape != expected.shape or not difference <= TOLERANCE:
            raise ValueError(f"the model can't be exported to {suffix}: outputs differ by {difference:.1e}")


def _safetensors(model: nn.Module, file: BinaryIO, facts: Facts, example: Tensor | None) -> None:
    from safetensors.torch import save

    file.write(save(plain_state(model), metadata={KEY: facts.to_json()}))


def _torch_export(model: nn.Module, file: BinaryIO, facts: Facts, example: Tensor | None) -> None:
    torch.export.save(_exported(model, example), file, extra_files={KEY: facts.to_json()})


def _onnx(model: nn.Module, file: BinaryIO, facts: Facts, example: Tensor | None) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - to load the file
        import onnxscript  # noqa: F401 - torch.onnx needs it, and would fail later
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error.name} is not installed; pip install "mxtorch[onnx]"') from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.onnx
        program = torch.onnx.export(
            _exported(model, example), input_names=["inputs"], output_names=["outputs"], dynamo=True, verbose=False
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {KEY: facts.to_json()})
    file.write(proto.SerializeToString())


def _exported(model: nn.Module, example: Tensor | None) -> torch.export.ExportedProgram:
    assert example is not None
    # torch.export treats a size of 1 as a constant. With two samples, the number of samples can vary.
    inputs = example if len(example) > 1 else torch.cat([example, example])
    open_batch = ({0: torch.export.Dim("batch")},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch
            return torch.export.export(model, (inputs,), dynamic_shapes=open_batch, strict=False)
    except Exception as error:  # tracing runs the user's code, which may raise any type
        raise ValueError(f"the model can't be exported: {first_line(error)}") from error


_WRITERS: dict[str, Callable[[nn.Module, BinaryIO, Facts, Tensor | None], None]] = {
    ".safetensors": _safetensors,
    ".pt2": _torch_export,
    ".onnx": _onnx,
}

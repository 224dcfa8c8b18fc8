"""The scale of activations and gradients, layer by layer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mxtorch._structure import tensors_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mark = Literal["", "vanishing", "exploding", "not finite"]

_FAR = 1e4  # torchvision's networks stay within 2.5e3 (MobileNetV3's gradients), most within 1e2


@dataclasses.dataclass(frozen=True)
class LayerSignal:
    """The figures of one layer. For a layer that runs several times, they are those of the last run.

    Args:
        name: The layer's name in the network.
        kind: The name of the layer's class.
        activation: The root mean square of the output.
        gradient: The Euclidean norm of the gradient of the loss with respect to the output. It is no mean, because in a
            larger feature map, each position has a smaller part of the gradient.
        weight_gradient: The Euclidean norm of the gradient of the loss with respect to the layer's own parameters.
        activation_mark: The problem of the activation, compared with that of the first layer; empty if there is none.
        gradient_mark: The problem of the gradient, compared with that of the last layer; empty if there is none.
    """

    name: str
    kind: str
    activation: float
    gradient: float
    weight_gradient: float
    activation_mark: Mark = ""
    gradient_mark: Mark = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Signal:
    """The result of `check`: one row for each layer, in the order in which the layers ran; `print` shows a table."""

    rows: tuple[LayerSignal, ...]

    @property
    def status(self) -> str:
        """`"ok"`, or the worst mark of a layer: `"not finite"`, `"exploding"` or `"vanishing"`."""
        marks = {mark for row in self.rows for mark in (row.activation_mark, row.gradient_mark)}
        return next((mark for mark in ("not finite", "exploding", "vanishing") if mark in marks), "ok")

    def __iter__(self) -> Iterator[LayerSignal]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        lines = [f"{'layer':<32} {'kind':<18} {'activation':>10} {'gradient':>10} {'weight gr.':>10}"]
        for row in self.rows:
            figures = f"{row.activation:>10.2e} {row.gradient:>10.2e} {row.weight_gradient:>10.2e}"
            parts = (("activation", row.activation_mark), ("gradient", row.gradient_mark))
            marks = ", ".join(f"{part} {mark}" for part, mark in parts if mark)
            lines.append(f"{row.name:<32} {row.kind:<18} {figures}  {marks}".rstrip())
        return "\n".join([*lines, f"status: {self.status}"])

    __repr__ = __str__

    def plot(self) -> Figure:
        """A matplotlib figure of both scales by layer, on a logarithmic axis. Dots show layers with a mark."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(6.0, min(14.0, 0.25 * len(self))), 4.2), layout="tight")
        axes = figure.subplots()
        series = (
            ("activation (rms)", "#1f4e79", [(row.activation, row.activation_mark) for row in self.rows]),
            ("gradient (norm)", "#e07a1f", [(row.gradient, row.gradient_mark) for row in self.rows]),
        )
        for label, color, values in series:
            drawn = [value if 0 < value < math.inf else math.nan for value, _ in values]
            axes.plot(drawn, color=color, label=label)
            marked = [position for position, (_, mark) in enumerate(values) if mark]
            axes.plot(marked, [drawn[position] for position in marked], "o", color=color)
        axes.set_yscale("log")
        step = math.ceil(len(self) / 40)
        axes.set_xticks(range(0, len(self), step), [row.name for row in self.rows[::step]], rotation=90, fontsize=7)
        axes.set_title(f"Signal by layer: {self.status}", loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
        return figure


def check(
    net: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor] | None = None, *, writer: Any = None, step: int = 0
) -> Signal:
    """Run one forward and backward pass and return the scale of activations and gradients by layer.

    Use it if the loss does not fall at any learning rate. The function does not change gradients, buffers and random
    generators. Every module that has its own parameters and that runs is a layer. A layer gets a mark if its activation
    is 10,000 times smaller or larger than that of the first layer, or its gradient than that of the last layer, because
    the signals start in these two layers (He et al. 2015, arXiv 1502.01852, sec. 2.2). A layer also gets a mark if the
    values are not finite, or all zero. If the weights of the head start at zero, all layers before it get a mark,
    because none of them learns in the first step.

    Args:
        net: The network, on the batch's device, in the mode (training or evaluation) of interest.
        batch: The network's input: a tensor, or a mapping that is passed as keyword arguments. With a `loss`, a pair of
            input and targets; without a `loss`, the second part of a pair is ignored.
        loss: Called with output and targets. By default the output is multiplied by fixed random numbers and summed,
            so that no targets are needed.
        writer: A `torch.utils.tensorboard.SummaryWriter` that gets figure and table as `init/signal`.
        step: The step for the writer.

    Raises:
        TypeError: `net` is not a module, or `loss` is not callable.
        ValueError: A parameter is lazy or on the meta device, there is a `loss` and no targets, no layer with
            parameters ran, or no parameter requires a gradient.

    Example:
        >>> import torch
        >>> from mxtorch import init, nn
        >>> net = nn.Sequential(*[nn.Linear(8, 8, activation="tanh") for _ in range(30)])
        >>> init.initialize(net, init.Normal(std=0.01), seed=0)["0.weight"].reason
        'global weight'
        >>> init.check(net, torch.ones(2, 8)).status
        'vanishing'
    """
    inputs, targets = _parts(net, batch, loss)
    rows: dict[str, _Recorder] = {}
    with contextlib.ExitStack() as hooks, _untouched(net), torch.enable_grad():
        for name, module in net.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                recorder = _Recorder(name or type(module).__name__, module, rows)
                hooks.enter_context(module.register_forward_hook(recorder))
        output = net(**inputs) if isinstance(inputs, Mapping) else net(inputs)
        if not rows:
            raise ValueError("net: no layer with parameters ran; give a network with such layers")
        objective = _projection(output) if loss is None else loss(output, targets)
        wanted: list[Tensor] = [parameter for parameter in net.parameters() if parameter.requires_grad]
        wanted += [r.output for r in rows.values() if r.output is not None and r.output.requires_grad]
        gradients = torch.autograd.grad(objective, wanted, allow_unused=True)
    by_tensor = {id(tensor): gradient for tensor, gradient in zip(wanted, gradients, strict=True)}
    signal = Signal(_marked([recorder.row(by_tensor) for recorder in rows.values()]))
    if writer is not None:
        writer.add_figure("init/signal", signal.plot(), step)
        writer.add_text("init/signal", f"```\n{signal}\n```", step)
    return signal


@dataclasses.dataclass(eq=False, repr=False)
class _Recorder:
    """A forward hook that keeps a layer's output and its scale, which a later layer may change in place."""

    name: str
    module: nn.Module
    rows: dict[str, _Recorder]
    output: Tensor | None = None
    activation: float = math.nan

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = _floating(output)
        if tensors:
            self.output = tensors[0]
            self.activation = float(tensors[0].detach().double().square().mean().sqrt())
            self.rows.pop(self.name, None)  # a layer that runs again moves to the position of its last run
            self.rows[self.name] = self

    def row(self, gradients: Mapping[int, Tensor | None]) -> LayerSignal:
        """The layer's figures. Those without a gradient, as in frozen layers, are NaN."""
        own = [gradients.get(id(parameter)) for parameter in self.module.parameters(recurse=False)]
        weights = [gradient.detach().double().norm() for gradient in own if gradient is not None]
        gradient = gradients.get(id(self.output))
        return LayerSignal(
            self.name,
            type(self.module).__name__,
            self.activation,
            math.nan if gradient is None else float(gradient.detach().double().norm()),
            float(torch.stack(weights).norm()) if weights else math.nan,
        )


def _marked(rows: Sequence[LayerSignal]) -> tuple[LayerSignal, ...]:
    first = next((row.activation for row in rows if row.activation), 0.0)
    reached = [row.gradient for row in rows if not math.isnan(row.gradient)]
    last = next((gradient for gradient in reversed(reached) if gradient), 0.0)
    # Zeros in the middle are intended, for example at the end of a residual branch. Zeros at either end are not.
    activation_dies = rows[-1].activation == 0
    gradient_dies = bool(reached) and reached[0] == 0
    return tuple(
        dataclasses.replace(
            row,
            activation_mark=_mark(row.activation, first, activation_dies),
            gradient_mark="" if math.isnan(row.gradient) else _mark(row.gradient, last, gradient_dies),
        )
        for row in rows
    )


def _mark(value: float, reference: float, zero_is_dead: bool) -> Mark:
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "vanishing" if zero_is_dead else ""
    if not reference or not math.isfinite(reference):
        return ""
    return "vanishing" if value < reference / _FAR else "exploding" if value > reference * _FAR else ""


def _parts(net: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor] | None) -> tuple[Any, Any]:
    """The inputs and targets of a batch, after a check of the arguments."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: got {type(net).__name__}; give a torch.nn.Module")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: got {loss!r}; give a function of output and targets, or None")
    for name, parameter in net.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"net: {name} has no values yet; run a batch through the network (lazy) or initialise it (meta device)"
            )
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError("net: no parameter requires a gradient; unfreeze some with requires_grad_()")
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if loss is not None and not is_pair:
        raise ValueError(f"batch: got {type(batch).__name__} with a loss; give a pair of inputs and targets")
    return (batch[0], batch[1]) if is_pair else (batch, None)


def _floating(output: Any) -> list[Tensor]:
    """The floating-point tensors in an output, which may be nested."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _projection(output: Any) -> Tensor:
    """The sum of the output times fixed random numbers."""
    tensors = [tensor for tensor in _floating(output) if tensor.requires_grad]
    if not tensors:
        raise ValueError(
            f"net: its output is a {type(output).__name__} without a floating-point tensor that has a gradient; give "
            "a loss"
        )
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=tensors[0].device)
    for tensor in tensors:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        total = total + (tensor * noise).sum() / math.sqrt(tensor.numel())
    return total


@contextlib.contextmanager
def _untouched(net: nn.Module) -> Iterator[None]:
    """Restore buffers and torch's random generators, including those of the network's devices, at the end."""
    buffers = [(module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()]
    kept = [None if buffer is None else buffer.clone() for _, _, buffer in buffers]
    devices = {parameter.device for parameter in net.parameters() if parameter.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    with torch.random.fork_rng(list(devices), device_type=kind):
        try:
            yield
        finally:
            with torch.no_grad():
                for (module, name, buffer), value in zip(buffers, kept, strict=True):
                    module._buffers[name] = buffer
                    if buffer is not None and value is not None:
                        buffer.copy_(value)

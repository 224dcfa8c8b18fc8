"""Several processes that train one model together: Hugging Face Accelerate, with DDP or FSDP2."""

from __future__ import annotations

import collections
import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mxtorch._checks import closest, shortened
from mxtorch._structure import digest
from mxtorch.data.sharding import share
from mxtorch.engines import processes, sharded
from mxtorch.engines.base import Precision, StepResult
from mxtorch.engines.comparison import check_same, described, described_optimizers
from mxtorch.engines.exchange import broadcast_buffers, broadcast_values, mean_gradients
from mxtorch.engines.failure import Togetherness
from mxtorch.engines.local import LocalEngine, resolve_device, scalars
from mxtorch.engines.nonfinite import BadNumberError
from mxtorch.engines.replicas import Replicated
from mxtorch.optim.scheduled import ScheduledOptim

Strategy = Literal["ddp", "fsdp2"]
_STRATEGIES = ("ddp", "fsdp2")
# On an accelerator a flag is read so many steps late, when it has long been there.
STEPS_LATE = 2


class DistributedEngine(LocalEngine):
    """Several processes, each with a device and a share of every batch, that train one model.

    `Trainer` makes one by itself where a script was started by `torchrun`, `accelerate launch`, `srun` or `mpirun`;
    make one by hand for its options. In a script that was started alone it does as `LocalEngine`. See
    docs/many-gpus.md.

    The module that was handed in stays what `trainer.model` is, with its names, in both strategies: calling it is what
    exchanges gradients.

    Args:
        device: `"auto"`, `"cuda"` or another kind: each process takes the one of its number on its machine. With
            `"cpu"` the processes exchange numbers by gloo.
        precision: As for `LocalEngine`. With FSDP2, `"bf16"` also gathers and computes in bfloat16, and adds gradients
            up in float32; `"fp16"` can't be had there.
        strategy: `"ddp"` keeps the whole model on each process; `"fsdp2"` a part of each parameter, its gradient and
            its optimizer state, for models that do not fit.
        channels_last: As for `LocalEngine`; left out with FSDP2.
        compile: As for `LocalEngine`.
        sync_batch_norm: Let batch normalisation see the batches of all processes as one; on accelerators only.
        find_unused_parameters: With DDP, for models some of whose parameters have no part in a step's loss; costs a
            walk through the graph in each step.
        split_data: Whether data are dealt to the processes. False where each of them reads its own already.
        wrap: With FSDP2, the classes of modules, or their names, that are gathered together: the blocks of a
            transformer. By default the elements of the model's module lists.

    Raises:
        ValueError: For an unknown strategy, a device that is not there, options that do not go together; Accelerate is
            not installed.
    """

    def __init__(
        self,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        *,
        strategy: Strategy = "ddp",
        channels_last: bool | Literal["auto"] = "auto",
        compile: bool | dict[str, Any] = False,
        sync_batch_norm: bool = False,
        find_unused_parameters: bool = False,
        split_data: bool = True,
        wrap: Any = None,
    ) -> None:
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy: got {strategy!r}{closest(str(strategy), _STRATEGIES)}")
        launch = processes.launched()
        if launch is not None:
            device = device_of(device, launch)
        super().__init__(device, precision, channels_last=channels_last, compile=compile)
        if sync_batch_norm and self.device.type == "cpu":
            raise ValueError("sync_batch_norm: torch has it on accelerators only; leave it out on the CPU")
        self.strategy = strategy
        self.shards = strategy == "fsdp2" and launch is not None
        if strategy == "fsdp2":
            if precision == "fp16":
                raise ValueError("precision: fsdp2 has no 'fp16' here, whose scaler would have to look at all parts")
            self._channels_last = False
        self._sync_batch_norm = sync_batch_norm
        self._find_unused = find_unused_parameters
        self.splits_data = split_data
        self._wrap_classes = wrap
        self._replicas: Replicated | None = None
        self._buffers: list[Tensor] = []
        self._calls = 0
        self._looked_for_unused = False
        self._flag = False
        self._late: collections.deque[Callable[[], float]] = collections.deque()
        self._raised = False
        self._processes = 1
        self._file_group: Any = None
        if launch is None:
            return
        processes.join(launch, self.device.type)
        if not self.shards:
            self._accelerator = self._make_accelerator()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self._processes = self.world_size
        self._together = Togetherness()
        self._dealing = processes.Dealing()

    def _make_accelerator(self) -> Any:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError as error:
            raise ValueError("several processes need Accelerate: pip install 'mxtorch[distributed]'") from error
        # Buffers are told to the others once a step, and not in each forward pass.
        handler = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=self._find_unused)
        accelerator = Accelerator(cpu=self.device.type == "cpu", kwargs_handlers=[handler])
        # Accelerate's state is one of the whole process, and a forked process inherits it. Accelerate would wrap
        # nothing, and the process would train alone. All processes say so: none leaves while others still join.
        known = processes.gather(accelerator.num_processes)
        wrong = [rank for rank, count in enumerate(known) if count != len(known)]
        if wrong:
            raise ValueError(
                f"engine: {len(known)} processes were started, and Accelerate knows of {known[wrong[0]]} in rank "
                f"{', '.join(map(str, wrong))}, since an Accelerator was made there before the process joined the "
                "others; make it afterwards, or call accelerate.state.AcceleratorState._reset_state(True) first"
            )
        return accelerator

    # ---------------------------------------------------------------- the model

    def prepare(self, model: nn.Module, loss: nn.Module | None, *optimizers: ScheduledOptim) -> None:
        """Bring everything to the device, in place, and let the main process's weights be those of all."""
        if self.world_size == 1:
            super().prepare(model, loss, *optimizers)
            return
        modules = [model] if loss is None else [model, loss]
        if any(is_lazy(tensor) for module in modules for tensor in [*module.parameters(), *module.buffers()]):
            raise ValueError(
                "model: it has layers that get their shapes from the first batch, and the processes need the same from "
                "the start; run a batch through it before the Trainer is made"
            )
        self.check_same("Trainer", {"model": described(modules), "optimizers": described_optimizers(optimizers)})
        self._modules = modules
        if self._sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        if self.shards:
            self._shard(model, loss, optimizers)
            return
        compiled, self._compile = self._compile, False  # DDP's way needs the function within compiled
        super().prepare(model, loss, *optimizers)
        self._compile = compiled
        trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        tensors = [tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]]
        for tensor in {id(tensor): tensor for tensor in [*tensors, *trained]}.values():
            broadcast_values(tensor)
        compiler = None
        if compiled:
            compiler = functools.partial(torch.compile, **(compiled if isinstance(compiled, dict) else {}))
        others = [] if loss is None else [loss]
        if isinstance(replicas := vars(model).get("forward"), Replicated):  # of an earlier trainer
            replicas.release()
            del model.forward
        self._replicas = Replicated(model, others, self._wrapped, compiler)
        for optimizer in optimizers[1:]:
            # training_step steps these itself, so their gradients are exchanged as they do.
            optimizer.optimizer.register_step_pre_hook(self._before_other_step)

    def _shard(self, model: nn.Module, loss: nn.Module | None, optimizers: tuple[ScheduledOptim, ...]) -> None:
        """Shard the model; see `mxtorch.engines.sharded`."""
        if len(optimizers) > 1:
            raise ValueError("other_optimizers: fsdp2 shards one model with one optimizer; use strategy='ddp'")
        if loss is not None and any(True for _ in loss.parameters()):
            raise ValueError("loss: it has parameters, and fsdp2 shards those of the model alone; use strategy='ddp'")
        tensors = [*model.parameters(), *model.buffers()]
        if len(set(processes.gather(digest([tensor.detach() for tensor in tensors])))) > 1:
            for tensor in tensors:
                broadcast_values(tensor)
        sharded.shard(model, optimizers, self.device, half=self.precision == "bf16", wrap=self._wrap_classes)
        model.to(self.device)
        if loss is not None:
            loss.to(self.device)
        self._autocast_type = None  # it computes in bfloat16 by itself
        if self._compile:
            model.compile(**(self._compile if isinstance(self._compile, dict) else {}))

    def _wrapped(self, module: nn.Module) -> Any:
        with warnings.catch_warnings():  # newer versions of torch have another name for `broadcast_buffers`
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = self._accelerator.prepare_model(module, device_placement=False)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"engine: Accelerate is set to {self._accelerator.distributed_type}, which does not wrap the model in "
                "DDP; start the script with torchrun, or without that setting of `accelerate config`"
            )
        self._accelerator._models.clear()  # they would be kept, and there is a new one for other trained parameters
        return wrapped

    def _before_other_step(self, optimizer: Any, arguments: Any, named_arguments: Any) -> None:
        if self.world_size > 1:
            mean_gradients([p for group in optimizer.param_groups for p in group["params"]])

    # ---------------------------------------------------------------- a step

    def zero_grad(self, optimizer: ScheduledOptim) -> None:
        """Clear the gradients, as a step begins."""
        if self.world_size > 1 and not self.shards:
            assert self._replicas is not None
            self._replicas.prepare()
            self._replicas.in_step = True
            self._calls = self._replicas.calls
        super().zero_grad(optimizer)

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """The context of forward and backward passes whose gradients stay on this process for now."""
        if self.world_size == 1:
            return self._no_context
        if self.shards:
            return _gradients_kept(model)
        assert self._replicas is not None
        context: contextlib.AbstractContextManager[Any] = self._replicas.no_sync()
        return context

    def stand_in(self) -> Tensor | None:
        """A loss of zero, where the model is called on other processes; see `Engine.stand_in`."""
        if self.world_size == 1:
            return None
        if self.shards:
            raise ValueError(
                "training_step: it returned None, or a loss of no targets, on some process; with fsdp2 all processes "
                "compute together, so return a loss of 0 times the outputs"
            )
        assert self._replicas is not None
        return self._replicas.nothing()

    def exchange_gradients(self, optimizer: ScheduledOptim, loss: Tensor | None, *, held_back: bool) -> None:
        """Make the gradients the mean of those of all processes; see `Engine.exchange_gradients`."""
        if self.world_size == 1:
            super().exchange_gradients(optimizer, loss, held_back=held_back)
            return
        if self.shards:
            if held_back or loss is None:
                raise ValueError("auto_accumulate: fsdp2 can't take it; give the loader a smaller batch_size")
            self.backward(loss)
            broadcast_buffers(self._modules)
            return
        replicas = self._replicas
        assert replicas is not None
        called = replicas.calls > self._calls
        if not held_back:
            assert loss is not None
            self.backward(loss)
        replicas.in_step = False
        if held_back or not called:  # training_step went round `trainer.model`
            mean_gradients([p for module in self._modules for p in module.parameters() if p.requires_grad])
        elif not self._looked_for_unused:
            self._check_all_used()
        broadcast_buffers(self._modules)

    def step(
        self,
        optimizer: ScheduledOptim,
        *,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        measure_norm: bool = False,
        on_nonfinite: str | None = None,
    ) -> StepResult:
        """Clip the gradients, by the norm of all parts, and take the step; see `Engine.step`.

        With FSDP2 on an accelerator, `"skip"` waits for the device in each step, and the other policies find a bad
        gradient after its step.
        """
        if not self.shards:
            return super().step(
                optimizer,
                clip_grad_norm=clip_grad_norm,
                clip_grad_value=clip_grad_value,
                measure_norm=measure_norm,
                on_nonfinite=on_nonfinite,
            )
        gradients = list(sharded.gradients_of(optimizer))
        clipped: Tensor | None = None  # 1 where clipping the values hides a gradient that is not finite
        if clip_grad_value is not None:
            if on_nonfinite is not None:
                clipped = self._found.zero_()
                self._mark_bad(gradients)
            for gradient in gradients:
                gradient.clamp_(-clip_grad_value, clip_grad_value)
        norm = bad = None
        if clip_grad_norm is not None or measure_norm or on_nonfinite is not None:
            norm = sharded.norm_of(gradients, self.device, clipped)
            if clip_grad_norm is not None:
                sharded.clip(gradients, norm, clip_grad_norm)
            bad = (~norm.isfinite()).float()
        if on_nonfinite is not None and (on_nonfinite == "skip" or not self.asynchronous):
            assert bad is not None
            if bad.item():
                raise BadNumberError("the loss is finite, its gradient is not")
            bad = None
        optimizer.step()
        return StepResult(True, norm, bad if on_nonfinite is not None else None)

    def total(self, *values: float | Tensor) -> Tensor:
        """The sums of some scalars over all processes; see `Engine.total`."""
        if self.world_size == 1:
            return super().total(*values)
        sums = scalars((*values, float(self._flag)), self.device)
        dist.all_reduce(sums)
        if self.asynchronous:
            self._late.append(self.read_later(sums[-1]))
        else:
            self._raised = bool(sums[-1] > 0)
        return sums[:-1]

    def reduce(self, value: Tensor, how: Literal["mean", "sum"] = "mean") -> Tensor:
        """The mean or the sum of a tensor over all processes."""
        if self.world_size == 1:
            return value
        reduced = value.detach().clone()
        dist.all_reduce(reduced)
        return reduced / self.world_size if how == "mean" else reduced

    def gather(self, value: Tensor) -> Tensor:
        """The tensors of all processes, which may differ in length, along the first dimension."""
        if self.world_size == 1:
            return value
        return torch.cat([one.to(self.device) for one in processes.gather(value.detach().cpu())])

    def _check_all_used(self) -> None:
        """Raise where a parameter had no part in the first step: DDP would wait for its gradient in vain."""
        self._looked_for_unused = True
        if self._find_unused:
            return
        unused = [
            name
            for module in self._modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        if unused:
            raise ValueError(
                f"model: the loss does not depend on {shortened(unused, 3)}, and DDP waits for every gradient. "
                "Freeze them (requires_grad_(False)), or, where they have a part in some steps only, give "
                "Trainer(engine=DistributedEngine(find_unused_parameters=True))"
            )

    # ---------------------------------------------------------------- what processes decide together

    def agree(self, flag: bool) -> bool:  # type: ignore[override]
        """Whether the flag is True on any process."""
        return bool(flag) if self.world_size == 1 else processes.any_of(flag)

    def agree_soon(self, flag: bool) -> bool:  # type: ignore[override]
        """Whether the flag was True on any process some steps ago."""
        if self.world_size == 1:
            return bool(flag)
        self._flag = bool(flag)
        if self.asynchronous and len(self._late) > STEPS_LATE:
            self._raised = self._late.popleft()() > 0
        return self._raised

    def broadcast(self, value: Any) -> Any:
        """What the main process gives."""
        return value if self.world_size == 1 else processes.broadcast(value)

    def gather_values(self, value: Any) -> list[Any]:
        """What all processes give, in their order."""
        return [value] if self.world_size == 1 else processes.gather(value)

    def share(self, data: Any) -> Any:
        """This process's part of data; see `mxtorch.data.sharding`."""
        if isinstance(data, Mapping):
            return {name: self.share(one) for name, one in data.items()}
        return share(data, self._dealing) if self.world_size > 1 and self.splits_data and data is not None else data

    def check_same(self, call: str, facts: Mapping[str, Any]) -> None:
        """Raise on all processes where one of them was given something else."""
        if self.world_size == 1:
            return
        check_same(call, facts)

    def file_group(self) -> Any:
        """A gloo group of its own; made when it is first asked for, by all processes together."""
        if self._file_group is None and self.world_size > 1:
            self._file_group = dist.new_group(backend="gloo", timeout=processes.TIMEOUT)
        return self._file_group

    def together(self) -> contextlib.AbstractContextManager[Any]:
        """In the block, an exception on one process ends the others with its message."""
        return self._no_context if self.world_size == 1 else self._in_together()

    @contextlib.contextmanager
    def _in_together(self) -> Iterator[None]:
        with self._together:
            try:
                yield
            finally:
                if self._replicas is not None:
                    self._replicas.in_step = False
                self._flag = self._raised = False
                self._late.clear()

    @property
    def dealt(self) -> int:  # type: ignore[override]
        """How many processes' shares of the data this one is dealt."""
        return self._processes if self._processes > 1 and self._dealing.whole else 1

    @contextlib.contextmanager
    def whole_data(self) -> Iterator[None]:
        """In the block shared data deal this process the batches of all."""
        if self._processes == 1:
            yield
            return
        before, self._dealing.whole = self._dealing.whole, True
        try:
            yield
        finally:
            self._dealing.whole = before

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In the block this process computes by itself."""
        in_step = self._replicas is not None and self._replicas.in_step
        if self._replicas is not None:
            self._replicas.in_step = False
        count, self.world_size = self.world_size, 1
        try:
            with self.whole_data():
                yield
        finally:
            self.world_size = count
            if self._replicas is not None:
                self._replicas.in_step = in_step

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a DistributedEngine belongs to its processes and can't be copied or pickled")


def device_of(device: str | torch.device, launch: processes.Launch) -> torch.device:
    """The device of a process: that of its number on its machine.

    Raises:
        ValueError: A number was given, which all processes would take; or there are fewer devices than processes.
    """
    resolved = resolve_device(device)
    if resolved.type not in ("cuda", "xpu"):
        return resolved
    if device != "auto" and torch.device(device).index is not None:
        raise ValueError(f"device: got {str(device)!r}, which every process would take; give {resolved.type!r}")
    count = getattr(torch, resolved.type).device_count()
    if count == 1 and launch.local_rank > 0 and launch.local_world_size > 1:
        raise ValueError(
            f"device: {launch.local_world_size} processes were started on this machine, and torch sees one "
            f"{resolved.type} device; start one process for each device"
        )
    if launch.local_rank >= count:
        raise ValueError(
            f"device: {launch.local_world_size} processes were started on this machine, and torch sees {count} "
            f"{resolved.type} devices; start one process for each device, or give device='cpu'"
        )
    return torch.device(resolved.type, launch.local_rank)


@contextlib.contextmanager
def _gradients_kept(model: Any) -> Iterator[None]:
    """Add gradients up on each process, and do not exchange them yet."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)

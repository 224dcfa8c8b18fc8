"""What must hold on a CUDA device; skipped where there is none."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Callback, ScheduledOptim, Trainer
from mxtorch.checkpointing.random_state import seed_everything
from mxtorch.engines.local import LocalEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

MODES = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "channels_last": {"precision": "bf16", "channels_last": True},
    "contiguous": {"precision": "bf16", "channels_last": False},
}


@pytest.fixture(autouse=True)
def _settings_come_back():
    matmul = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


@pytest.fixture
def pictures():
    """256 small pictures whose class is which half is brighter; one label in eight is wrong."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 3, 16, 16, generator=generator)
    labels = torch.randint(2, (256,), generator=generator)
    images[labels == 1, :, :8] += 1
    labels[::8] = 1 - labels[::8]  # some are wrong, so that there is something left to learn
    return TensorDataset(images, labels)


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 2),
    )


def make(kind=torch.optim.SGD, *, net=None, **options):
    net = build() if net is None else net
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    options = {"device": "cuda", "progress": False, "log_every": 1000} | options
    return Trainer(net, nn.CrossEntropyLoss(), ScheduledOptim(kind(net.parameters(), lr=0.02, **settings)), **options)


def make_loader(pictures, workers=0, **options):
    return DataLoader(pictures, 32, shuffle=True, pin_memory=True, num_workers=workers, **options)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_evaluates_and_predicts(pictures, mode):
    if mode == "tf32":
        torch.set_float32_matmul_precision("high")
    trainer = make(metrics={"accuracy": MulticlassAccuracy(num_classes=2)}, **MODES[mode])
    history = trainer.fit(make_loader(pictures), make_loader(pictures), epochs=6)
    assert history["val/accuracy"][-1] > 0.8
    parameters = list(trainer.model.parameters())
    assert all(parameter.dtype == torch.float32 and parameter.is_cuda for parameter in parameters)
    wants_channels_last = mode in ("bf16", "fp16", "channels_last")
    assert (trainer.engine.memory_format is torch.channels_last) == wants_channels_last
    outputs = trainer.predict(DataLoader(pictures, 100))
    assert (outputs.device.type, outputs.dtype, len(outputs)) == ("cpu", torch.float32, 256)


def test_evaluation_agrees_with_the_cpu(pictures):
    net = build()
    on_cpu = make(net=copy.deepcopy(net), device="cpu").evaluate(DataLoader(pictures, 64))
    on_gpu = make(net=net).evaluate(DataLoader(pictures, 64))
    assert on_gpu["val/loss"] == pytest.approx(on_cpu["val/loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # of the compiler's own imports
def test_compiled_in_place(pictures):
    names = list(build().state_dict())
    trainer = make(precision="bf16", compile=True)
    history = trainer.fit(DataLoader(pictures, 32, shuffle=True, drop_last=True), epochs=4)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert list(trainer.model.state_dict()) == names


# ---------------------------------------------------------------- no trace, exact continuation


def everything(trainer):
    values = [value.clone() for value in trainer.model.state_dict().values()]
    for entry in trainer.optimizer.state.values():
        values += [value.clone() for value in entry.values() if isinstance(value, torch.Tensor)]
    values += [torch.get_rng_state(), torch.cuda.get_rng_state()]
    return values


def assert_same(first, second):
    assert len(first) == len(second)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"value {index} differs"


def find(trainer, loader):
    assert len(trainer.find_lr(loader, num_steps=60).trials) > 5


def find_interrupted(trainer, loader):
    steps = []

    def interrupt(*_):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt

    handle = trainer.optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        find(trainer, loader)
    handle.remove()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("sweep", [find, find_interrupted])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_find_lr_leaves_no_trace(pictures, precision, kind, sweep):
    def run(sweep):
        seed_everything(3)
        trainer, loader = make(kind, precision=precision), make_loader(pictures, workers=2)
        trainer.fit(loader)
        if sweep is not None:
            sweep(trainer, loader)
        trainer.fit(loader)
        return everything(trainer)

    assert_same(run(None), run(sweep))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saved_run_goes_on_bit_for_bit(pictures, precision, tmp_path):
    def begin():
        seed_everything(3)
        return make(torch.optim.Adam, precision=precision), make_loader(pictures)

    trainer, loader = begin()
    trainer.fit(loader, epochs=2)
    trainer.save(tmp_path / "run.pt")
    trainer.fit(loader)
    again, loader = begin()
    again.load(tmp_path / "run.pt")
    again.fit(loader)
    assert_same(everything(again), everything(trainer))


# ---------------------------------------------------------------- the device is not waited for


class ForbidWaiting(Callback):
    """Makes torch raise when the host waits for the device, from step 5 to step 55."""

    def on_step(self, trainer):
        if trainer.step == 5:
            torch.cuda.set_sync_debug_mode("error")
        elif trainer.step == 55:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"clip_grad_norm": 1.0}, {"accumulate": 2}], ids=str)
def test_no_step_waits_for_the_device(pictures, options):
    images, labels = pictures.tensors
    pinned = [(images[:32].pin_memory(), labels[:32].pin_memory())] * 120
    trainer = make(callbacks=[ForbidWaiting()], log_every=58, **options)
    trainer.fit(pinned, schedule="one_cycle")
    assert trainer.step >= 60
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_sweep_holds_one_copy_of_the_state():
    net = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(12)], nn.Linear(1024, 2))
    trainer = make(torch.optim.Adam, net=net)
    data = [(torch.randn(4, 1024), torch.tensor([0, 1, 0, 1]))] * 40
    trainer.fit(data)

    def peak(work):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()

    bare = peak(lambda: trainer.fit(data))
    swept = peak(lambda: trainer.find_lr(data, num_steps=100))
    parameters = sum(parameter.numel() * 4 for parameter in net.parameters())
    assert swept - bare <= 3 * parameters * 1.05, "parameters and Adam's two moments, once"


# ---------------------------------------------------------------- faults


def test_bad_labels_are_told_and_the_device_goes_on(pictures):
    images, labels = pictures.tensors
    trainer = make()
    with pytest.raises(ValueError, match="labels: got 0 to 2"):
        trainer.fit([(images, labels * 2)])
    with pytest.raises(ValueError, match="labels: got 0 to 2"):
        trainer.evaluate([(images, labels * 2)])
    trainer.fit([(images, labels)])


def test_running_out_of_memory_stays_what_it_is(pictures):
    class Large(Trainer):
        def training_step(self, batch):
            torch.empty(1 << 50, device=self.engine.device)
            return super().training_step(batch)

    net = build()
    trainer = Large(
        net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), device="cuda", progress=False
    )
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(make_loader(pictures))


def test_a_loss_gone_bad_is_named(pictures):
    images, labels = pictures.tensors
    bad = images.clone()
    bad[100] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 4 \(batch 3 .*is not finite: the loss is nan"):
        make().fit(DataLoader(TensorDataset(bad, labels), 32))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_do_not_count(pictures, fused):
    net = build()
    optimizer = ScheduledOptim(torch.optim.Adam(net.cuda().parameters(), lr=1e-3, fused=fused))
    trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, device="cuda", precision="fp16", progress=False)
    trainer.engine.load_state_dict({**trainer.engine.state_dict(), "scale": 2.0**60})
    trainer.fit(make_loader(pictures), epochs=6)
    assert 0 < optimizer.current_steps < trainer.step


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="torch sees"):
        make(device="cuda:99")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_number_is_read_from_a_device_that_is_not_the_current_one():
    engine = LocalEngine("cuda:1")
    large = torch.randn(8192, 8192, device="cuda:1")
    for number in range(20):
        for _ in range(8):  # work that the copy to the host has to wait for
            large = torch.nn.functional.normalize(large @ large)
        value = large.sum() * 0 + number
        assert engine.read_later(value)() == number

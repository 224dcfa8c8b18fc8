"""Install the built wheel in a fresh environment with chosen versions of torch and its like, and try it there.

    python tools/check_versions.py --wheel dist/mxtorch-0.1.0-py3-none-any.whl              # the newest of everything
    python tools/check_versions.py --wheel dist/mxtorch-0.1.0-py3-none-any.whl --oldest     # the oldest supported
    python tools/check_versions.py --wheel WHEEL --python python3.13 --tests tests/optim

What is tried is a program from the README in short: find a rate, train, save, load, export; with `--tests` tests of the
repository as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The lower bounds of pyproject.toml, where they go together. Others are taken as pip finds them.
OLDEST = ("torch==2.6.*", "torchvision==0.21.*", "timm==1.0.22", "numpy<2.3")
TRIAL = """
import platform, torch, torchvision
from torch import nn
from mxtorch import ScheduledOptim, Trainer, exporting, model_zoo, schedules
from mxtorch.callbacks import Checkpoint
torch.manual_seed(0)
net = model_zoo.resnet10t(num_classes=2)
pictures = torch.randn(48, 3, 32, 32)
data = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(pictures, (pictures.mean((1, 2, 3)) > 0).long()), 8, shuffle=True)
optimizer = ScheduledOptim(torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))
trainer = Trainer(net, nn.CrossEntropyLoss(), optimizer, callbacks=[Checkpoint("ckpt", every=3)], log_dir="runs",
                  device="cpu", progress=False)
found = trainer.find_lr(data, data, num_steps=40, schedule="one_cycle", epochs=2)
trainer.fit(data, data, epochs=2, lr=found.suggestion or 0.01, schedule=schedules.OneCycle(), resume="auto")
trainer.save("whole.ckpt"); trainer.load("whole.ckpt")
path = trainer.export("net.safetensors", data, example=pictures[:1], outputs="softmax", classes=["low", "high"])
print("ok: Python", platform.python_version(), "torch", torch.__version__, "torchvision", torchvision.__version__)
"""


def main() -> int:
    """Make the environment, install, try; the exit status is that of the first thing that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--oldest", action="store_true", help=f"install {', '.join(OLDEST)}")
    parser.add_argument("--extra", default="", help="an extra to install with it, as examples")
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, default=None, help="run this script with its options instead"
    )
    parser.add_argument("--tests", nargs="*", default=(), help="tests of the repository to run, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([options.python, "-m", "venv", f"{folder}/venv"], check=True)
        python = f"{folder}/venv/bin/python"
        extra = f"[{options.extra}]" if options.extra else ""
        wanted = [f"{options.wheel.resolve()}{extra}", *(OLDEST if options.oldest else ())]
        if options.tests:
            wanted += ["pytest", "hypothesis"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        # Elsewhere, and without PYTHONPATH: what is tried is the wheel, and not the sources.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        started = {"cwd": folder, "env": environment, "check": False}
        if options.run:
            script, *arguments = options.run
            return subprocess.run([python, str(Path(script).resolve()), *arguments], **started).returncode
        failed = subprocess.run([python, "-W", "error::DeprecationWarning:mxtorch", "-c", TRIAL], **started).returncode
        if failed or not options.tests:
            return failed
        tests = [str(ROOT / test) for test in options.tests]
        return subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], **started).returncode


if __name__ == "__main__":
    sys.exit(main())

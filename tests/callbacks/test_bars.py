from __future__ import annotations

import multiprocessing
import os
import pty
import sys
import time
import types

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from mxtorch import Trainer
from mxtorch.callbacks import bars
from mxtorch.callbacks.bars import LogLines, NotebookBar, progress_bar


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    bar = progress_bar(1000, "epoch 1/3")
    assert isinstance(bar, LogLines)
    for step in range(240):
        clock[0] += 1.0
        bar.set_postfix_str(f"train/loss {step}")
        bar.update(1)
    bar.close()
    output, errors = capsys.readouterr()
    assert output == ""
    lines = errors.splitlines()
    assert len(lines) == 8, "one every half minute"
    assert lines[0] == "epoch 1/3: 30/1000, about 970 s to go  train/loss 29"
    assert lines[-1].startswith("epoch 1/3: 240/1000, about 760 s to go")


def test_a_log_file_of_something_without_a_length(monkeypatch, capsys):
    monkeypatch.setattr(bars, "SECONDS_BETWEEN_LINES", 0.0)
    with LogLines(None, "epoch 1/3") as bar:
        bar.interval = 0.0
        bar.update(5)
    assert capsys.readouterr().err == "epoch 1/3: 5\n"


@pytest.fixture
def pages(monkeypatch):
    """What a notebook is shown: the pages that a bar sends to its display."""
    shown: list[str] = []
    display = types.ModuleType("IPython.display")
    display.HTML = lambda page: page

    class Handle:
        def update(self, page):
            shown.append(page)

    def show(page, display_id):
        shown.append(page)
        return Handle()

    display.display = show
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_is_shown_html_that_goes_away(pages):
    bar = NotebookBar(10, "epoch <1>/3")
    bar.interval = 0.0
    bar.set_postfix_str("train/loss 0.5", refresh=False)
    bar.update(4)
    assert "epoch &lt;1&gt;/3" in pages[0]
    assert 'value="4" max="10"' in pages[1]
    assert "train/loss 0.5" in pages[1]
    bar.close()
    bar.close()
    bar.update(1)
    assert pages[-1] == ""
    assert len(pages) == 3, "nothing is shown after the end"


def test_a_notebook_is_not_flooded(pages):
    bar = NotebookBar(None, "features")
    for _ in range(1000):
        bar.update(1)
    assert len(pages) < 20


class Slow:
    """Batches that take their time, so that bars are drawn."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            time.sleep(0.005)
            yield batch


def train_in(terminal):
    """Search and train in a forked process that writes to a terminal."""
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    os.close(terminal)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)  # the threads of the process that was forked are not there to wait for
    net = nn.Linear(4, 2)
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(150)]
    trainer = Trainer(
        net,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(net.parameters(), lr=0.1),
        metrics={"accuracy": MulticlassAccuracy(2), "macro_accuracy": MulticlassAccuracy(2)},
        device="cpu",
        log_every=5,
    )
    trainer.find_lr(batches, batches, num_steps=60)
    trainer.fit(Slow(batches), batches[:2], epochs=2)
    sys.stdout.flush()
    sys.stderr.flush()


@pytest.mark.parametrize("columns", [80, 160])
def test_no_line_is_longer_than_the_terminal_and_no_figure_is_cut(columns):
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = multiprocessing.get_context("fork").Process(target=train_in, args=(slave,))
    process.start()
    os.close(slave)
    written = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the end, on Linux
            break
        if not chunk:
            break
        written += chunk
    os.close(master)
    process.join()
    assert process.exitcode == 0, written.decode()
    drawn = [line for line in written.decode().replace("\x1b[A", "").split("\r") if "|" in line]
    assert len(drawn) > 5
    assert max(len(line) for line in drawn) <= columns
    whole = [line.split("train/loss")[1] for line in drawn if "train/loss" in line and "lr " in line]
    assert whole
    if columns == 160:
        assert any("samples/s" in line for line in whole)
    for line in whole:
        assert not line.rstrip().endswith(("accuracy", "val/loss", "lr", "e-")), "a figure without its number"

"""What is promised of the gallery; that its programs run shows when the site is built."""

from __future__ import annotations

import ast
import re

import pytest
from blocks import ROOT

PROGRAMS = sorted((ROOT / "examples" / "gallery").glob("*.py"))


def test_there_are_ten():
    assert len(PROGRAMS) >= 10


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and hasattr(node.func, "attr")
    }
    assert {"find_lr", "fit", "savefig", "show"} <= called
    assert f'"runs/{path.stem}.png"' in text
    assert not re.search(r"download|https?://(?!arxiv)|from_pretrained|fetch_", text), "nothing is fetched"


# What each program prints last when it has learnt its task, and the least (or most) that it has to be.
LEARNT = {
    "detection": (r"(\d+) of \d+ shapes found", 110),
    "image_classification": (r"validation accuracy ([\d.]+)", 0.95),
    "multi_label": (r"validation F1 ([\d.]+)", 0.85),
    "regression": (r"validation R2 ([\d.]+)", 0.4),
    "segmentation": (r"validation IoU ([\d.]+)", 0.8),
    "tabular": (r"AUC ([\d.]+)", 0.97),
    "text_classification": (r"validation accuracy ([\d.]+)", 0.7),
    "time_series": (r"(\d+)% of the hours within", 65),
    "gan": (r"nearest real one: ([\d.]+)", -4.5),
    "gpt": (r"validation loss ([\d.]+)", -2.3),
}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_what_the_site_shows_of_it(path):
    page = ROOT / "docs" / "_build" / "gallery" / f"{path.stem}.html"
    if not page.exists():
        pytest.skip("the site has not been built")
    pattern, bound = LEARNT[path.stem]
    found = float(re.findall(pattern, re.sub(r"<[^>]+>", "", page.read_text()))[-1])
    assert found >= bound if bound > 0 else found <= -bound
    assert list((ROOT / "docs" / "_build" / "_images").glob(f"sphx_glr_{path.stem}_001.png"))

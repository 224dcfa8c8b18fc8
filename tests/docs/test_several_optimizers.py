"""The code of docs/several-optimizers.md runs, and its generator learns the circle."""

import re
from pathlib import Path

DOCUMENT = (Path(__file__).parents[2] / "docs" / "several-optimizers.md").read_text()


def test_the_code_runs_from_top_to_bottom(capsys):
    scope = {"__name__": "several_optimizers"}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL):
        exec(compile(block, "docs/several-optimizers.md", "exec"), scope)
    radius, deviation = re.search(r"radius ([\d.]+), deviation ([\d.]+)", capsys.readouterr().out).groups()
    assert 0.8 < float(radius) < 1.2  # 0.1 before training
    assert float(deviation) < 0.35

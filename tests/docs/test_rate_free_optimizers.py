"""The code of docs/rate-free-optimizers.md runs, without a warning."""

import re
from pathlib import Path

DOCUMENT = (Path(__file__).parents[2] / "docs" / "rate-free-optimizers.md").read_text()


def test_the_code_runs():
    scope = {"__name__": "rate_free_optimizers"}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL):
        exec(compile(block, "docs/rate-free-optimizers.md", "exec"), scope)
    assert len(scope["trainer"].history.rows) == 2

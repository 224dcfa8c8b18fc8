"""The code of docs/schedules.md runs, and its table names what there is."""

import re
import typing
from pathlib import Path

import pytest

from mxtorch import schedules

DOCUMENT = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()


def test_the_code_runs():
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    exec(compile(block, "docs/schedules.md", "exec"), {})


@pytest.mark.parametrize("name", typing.get_args(schedules.ScheduleName))
def test_every_name_is_in_it(name):
    assert f'`"{name}"`' in DOCUMENT
    assert f"`{type(schedules.get(name)).__name__}`" in DOCUMENT

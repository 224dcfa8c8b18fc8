"""The table of the schedules names what there is."""

import typing
from pathlib import Path

import pytest

from mxtorch import schedules

DOCUMENT = (Path(__file__).parents[2] / "docs" / "how-to" / "schedules.md").read_text()


@pytest.mark.parametrize("name", typing.get_args(schedules.ScheduleName))
def test_every_name_is_in_it(name):
    assert f'`"{name}"`' in DOCUMENT
    assert f"`{type(schedules.get(name)).__name__}`" in DOCUMENT

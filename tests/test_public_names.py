"""What a user sees of the package itself."""

from __future__ import annotations

import pydoc

import mxtorch


def test_dir_shows_the_public_names_alone():
    assert dir(mxtorch) == sorted(mxtorch.__all__)
    assert {"Trainer", "CheckpointError", "model_zoo", "exporting"} <= set(dir(mxtorch))
    assert all(getattr(mxtorch, name) is not None for name in dir(mxtorch))


def test_the_map_has_every_public_name():
    listed = mxtorch.__doc__.replace(";", " ").replace("`", " ").split()
    assert [name for name in mxtorch.__all__ if name not in listed] == ["__version__"]


def test_help_shows_the_map():
    text = pydoc.plain(pydoc.render_doc(mxtorch))
    assert "Learning rates" in text
    assert "CheckpointError" in text

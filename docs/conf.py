"""Sphinx builds the site from this: `python -m sphinx -W docs docs/_build`, after `pip install -e ".[docs]"`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import matplotlib

import mxtorch

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
import reference_index

reference_index.write(Path(__file__).parent / "reference")
matplotlib.use("Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # examples run beside each other
# Notebooks and examples run in processes of their own, which inherit this: figures are kept, not shown.
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "mxtorch"
author = "The mxtorch authors"
copyright = "The mxtorch authors, Apache-2.0"  # noqa: A001
version = release = mxtorch.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "house",
]
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "_templates",
    "jupyter_execute",
    "gallery/*.ipynb",
    "gallery/*.py",
    "**sg_execution_times.rst",
]
# A class has two names, `mxtorch.Trainer` and that of its room, so some short names in docstrings fit two places.
suppress_warnings = ["ref.python", "config.cache", "mystnb.unknown_mime_type"]
nitpicky = False
default_role = "house"

# ---------------------------------------------------------------- pages
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# ---------------------------------------------------------------- notebooks: run at every build, a failure ends it
nb_execution_mode = "force"
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_execution_show_tb = True

# ---------------------------------------------------------------- reference
autosummary_generate = True
autosummary_ignore_module_all = False
# Classes that are described under `mxtorch` itself, and are not described again in the module that they come from.
autosummary_context = {"public": [name for name in mxtorch.__all__ if isinstance(getattr(mxtorch, name), type)]}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports: list[str] = []
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# ---------------------------------------------------------------- gallery
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py$|conftest\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "copyfile_regex": r"$^",
    "thumbnail_size": (320, 224),
    "image_scrapers": ("matplotlib",),
    "reset_modules": (),
    "plot_gallery": "True",
    "parallel": True,  # in as many processes as `-j` says
}

# ---------------------------------------------------------------- looks
html_theme = "furo"
html_title = f"mxtorch {mxtorch.__version__}"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_show_sourcelink = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

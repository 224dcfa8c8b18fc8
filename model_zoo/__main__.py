"""`python -m model_zoo`: see `cli`."""

from __future__ import annotations

import sys

from model_zoo.cli import main

sys.exit(main())

"""What `python -m mxtorch.model_zoo` runs; see `cli`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())

"""``python -m agent.sources.nvml``."""

import sys

from agent.sources.nvml.session import main

sys.exit(main())

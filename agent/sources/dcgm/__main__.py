"""``python -m agent.sources.dcgm``."""

import sys

from agent.sources.dcgm.poll import main

sys.exit(main())

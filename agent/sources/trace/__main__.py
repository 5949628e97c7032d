"""``python -m agent.sources.trace``."""

import sys

from agent.sources.trace.tracepoints import main

sys.exit(main())

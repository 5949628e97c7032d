"""``python -m agent.sources.kmsg``."""

import sys

from agent.sources.kmsg.follow import main

sys.exit(main())

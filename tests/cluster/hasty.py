"""The agent, but for one number: it takes a request to arrive within 30 seconds or never, and not within five minutes.

``python -m tests.cluster.hasty``. What waits for such a request takes a tenth of the time.
"""

import runpy

from agent.model import names

names.PERMIT_VALID_S = 30  # before whoever goes by it takes it over

from agent.actions import permits  # noqa: E402

permits._CONFIRM_S = 12.0

if __name__ == "__main__":
    runpy.run_module("agent", run_name="__main__", alter_sys=True)

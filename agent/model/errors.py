"""Whatever can go wrong and is no bug: one tree, each error one sentence for a person.

What nobody catches before, the command line says on standard error, and ends with the exit code that stands first here
(sysexits: 64 usage, 65 data, 75 not now, 78 configuration). An error outside the tree is a bug, and ends with its
traceback (1).

    AgentError                        1  the tree itself; raised by nobody, caught by the command line and by the drill
    |-- UsageError                   64  what was typed is wrong: commands, simulation, recording, drill -> command line
    |-- UnreadableError              65  what was given to read is not what it should be: commands -> command line
    |-- ConfigError                  78  a setting is wrong: config, recording, status, commands -> command line
    |-- CredentialsError             78  no way into the API server: actions -> act loop, which tries again
    |-- NotRunningError               1  no agent or simulation runs here: commands, simulation -> command line
    |-- UnreachableError              1  no answer from the API server: actions, drill -> act loop, which tries again
    |-- RefusedError                  1  the API server said no: actions, drill, runtime -> actions, act loop, drill
    |-- MalformedError                1  stored state that can't be read: remediation -> plan, which stops; explain (64)
    |   `-- NewerError                1  a newer agent wrote it: remediation -> plan, which only reports
    |-- UnaskedError                  1  the kubelet's PodResources can't be asked: sources -> sources, runtime, drill
    |-- UndiagnosedError             75  no result of a diagnosis: sources -> sources, runtime; command line
    |   `-- RefusedDiagnosisError    75  it must not run now: commands.diagnose -> command line
    |-- MissedError                   1  something did not happen in its time: drill -> drill, whose report says it (1)
    |-- UnfitError                    1  no node may be drilled: drill -> drill, whose report says it (1)
    |-- EngineError                   1  a DCGM engine can't be used: sources.dcgm -> its process, which says it
    |-- ChangedError                  1  the engine has other GPUs now: sources.dcgm -> its process, which begins anew
    |-- NoBindingsError               1  DCGM's bindings can't be used: sources.dcgm -> its process, which says it
    `-- _UnwantedError                1  nobody waits for a diagnosis any more: runtime -> runtime

Those that one room alone knows stand there; the others here.
"""

from __future__ import annotations

from http import HTTPStatus


class AgentError(Exception):
    """One sentence for a person: what is wrong and, where it can be said, what to do."""

    exit_code = 1


class UsageError(AgentError):
    """An argument, or a file that it names, is wrong."""

    exit_code = 64


class UnreadableError(AgentError):
    """What was given to be read can't be read as what it should be."""

    exit_code = 65


class ConfigError(AgentError):
    """A setting is wrong; the sentence names it."""

    exit_code = 78


class CredentialsError(AgentError):
    """No usable credentials for the API server."""

    exit_code = 78


class NotRunningError(AgentError):
    """No agent or simulation runs on this machine that could answer."""


class UnreachableError(AgentError):
    """No answer from the API server; the next round tries again."""


class RefusedError(AgentError):
    """The API server answered and said no, in its own sentence."""

    def __init__(self, status: int, sentence: str, causes: tuple[str, ...] = (), wait_s: int = 0) -> None:
        """``wait_s``: for how long the server wants to be left alone."""
        super().__init__(sentence)
        self.status, self.sentence, self.causes, self.wait_s = status, sentence, causes, wait_s

    @property
    def passes(self) -> bool:
        """Whether it is the server's trouble, and not the request's."""
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


class MalformedError(AgentError):
    """Stored state that can't be understood: the agent reports and acts on nothing until a person mends it."""


class NewerError(MalformedError):
    """A newer agent wrote it: this one, rolled back, reports what is bad and leaves everything else to that one."""


class UnaskedError(AgentError):
    """PodResources could not be asked, and why."""


class UndiagnosedError(AgentError):
    """There is no result of a diagnosis, and why."""

    exit_code = 75

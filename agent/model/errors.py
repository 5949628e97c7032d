"""What can go wrong between the agent and the API server."""

from __future__ import annotations


class UnreachableError(Exception):
    """No answer from the API server; the next round tries again."""


class CredentialsError(Exception):
    """No usable credentials for the API server: one sentence for a person."""


class RefusedError(Exception):
    """The API server answered and said no, in its own sentence."""

    def __init__(self, status: int, sentence: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.causes = status, sentence, causes

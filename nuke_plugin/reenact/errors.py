"""The plugin's errors. Each message is a sentence for the artist that says what to do next.

ServerError
  NoServerError
NodeError
"""


class ServerError(Exception):
    """The server refused a request, or a job failed.

    Attributes:
        code: one word for programs (`docs/protocol.md`).
        detail: technical details for a TD.
    """

    def __init__(self, code: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


class NoServerError(ServerError):
    """No server answers."""

    def __init__(self, endpoint: str, seconds: float, why: str = "") -> None:
        where = endpoint or "any address"
        super().__init__(
            "no_server",
            why or f"No Reenact server answers at {where}. Start it: reenact serve.",
            f"waited {seconds:.0f} s",
        )


class NodeError(Exception):
    """A node's knobs or inputs don't allow what was asked of it."""

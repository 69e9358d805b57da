"""The one base of every error that is meant for a user."""


class ReenactError(Exception):
    """Something the user can mend: the message is a sentence that says what to do next."""

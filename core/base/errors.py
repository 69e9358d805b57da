"""The base class of all errors that are meant for a user."""


class ReenactError(Exception):
    """Something that the user can fix: the message is a sentence that says what to do next."""

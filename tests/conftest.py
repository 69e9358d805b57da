"""Shared by all tests."""

import server  # noqa: F401  (sets torch's threads up as the command line does)

"""Shared by the solver's tests."""

import pytest
from small_character import small_character

from core.personalize.character import Character


@pytest.fixture(scope="session")
def character() -> Character:
    return small_character()

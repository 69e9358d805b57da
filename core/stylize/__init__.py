"""Styles of a character."""

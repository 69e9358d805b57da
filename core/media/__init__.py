"""Clips: reading and writing pictures and movies, and their colour."""

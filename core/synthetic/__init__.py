"""The embedded default: a procedural performer that needs no download."""

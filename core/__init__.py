"""The method: torch and numpy, no sockets, no Nuke."""

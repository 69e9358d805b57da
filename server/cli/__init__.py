"""The `reenact` command line."""

"""From a self-scan to a character."""

"""Reenact's client side: what Nuke imports, and the SDK for pipeline scripts."""

__version__ = "0.1.0"

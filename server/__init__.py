"""The inference server and its command line."""

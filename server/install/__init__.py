"""The installer, the doctor and what finds Nuke; most of it needs the standard library alone."""

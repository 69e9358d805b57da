"""Changing a latent track without solving it again.

directions    what to add to a code so that one attribute changes: files, and finding them
editing       moving the codes of a track along directions, keyed over time
repair        replacing, interpolating or solving single frames again
"""

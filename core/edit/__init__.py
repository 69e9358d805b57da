"""Editing and repairing a latent track."""

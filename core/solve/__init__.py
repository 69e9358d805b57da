"""From a driving clip to a latent track."""

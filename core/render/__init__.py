"""From a latent track to pictures in the plate."""

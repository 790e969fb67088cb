"""System checks of the environment."""

"""Scripts that reproduce every number and picture this project publishes."""

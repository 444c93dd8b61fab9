"""One module a command; each has ``register``, which adds its parser, and imports heavy packages only when it runs."""

"""Public pre-training: a detector trained without privacy, on data declared public, to start private runs from."""

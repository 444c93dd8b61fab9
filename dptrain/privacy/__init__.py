"""The guarantee: plan, accounting, clipping, sampling, noise. Nothing in here knows a model or a file."""

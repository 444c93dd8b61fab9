"""Tools for datasets, without differential privacy: check, scrub, redact, perturb, seal."""

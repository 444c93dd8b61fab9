"""Scenes of stained blood, drawn from what a textbook says; public."""

"""Scenes of handwritten digits: the private set of the demo, and the public set its start was trained on."""

"""Scenes of garments: real photos of Fashion-MNIST (private) and drawings anyone could make (public)."""

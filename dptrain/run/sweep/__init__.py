"""Sweeps: many runs of one command, what each came to, and what it costs to have looked at all of them.

``jobs`` keeps the record of a sweep on disk, ``cost`` composes, ``table`` and ``pictures`` show, ``session`` opens and
closes a sweep, also in MLflow. Nothing here trains: Hydra's launcher does, in this process or in others.
"""

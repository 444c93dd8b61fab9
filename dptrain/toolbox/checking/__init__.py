"""What a careful engineer wants to know of a dataset before training. All of it is as private as the images."""

from .findings import KINDS, CheckReport, Finding
from .run import check

__all__ = ["KINDS", "CheckReport", "Finding", "check"]

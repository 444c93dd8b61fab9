"""Images without what tells where, when, by whom and of whom they were taken; their pixels stay as they are."""

from .run import EPOCH, ScrubbedFile, ScrubReport, check, scrub

__all__ = ["EPOCH", "ScrubReport", "ScrubbedFile", "check", "scrub"]

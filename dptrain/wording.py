"""Words that depend on a number."""


def counted(number: int, what: str) -> str:
    """A number of things: ``1 box``, ``2 boxes``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('x') else 's'}"

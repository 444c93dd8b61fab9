"""Words that depend on a number."""


def counted(number: int, what: str) -> str:
    """A number of things: ``1 box``, ``2 boxes``, ``2 copies``."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}{'es' if what.endswith('x') else 's'}"

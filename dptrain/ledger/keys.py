"""The ledger's key: without it the hashes of the images cannot be guessed, nor an entry forged."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from ..errors import BudgetError
from ..support.files import read_file

KEY_BYTES = 32
ENVIRONMENT = "DPTRAIN_BUDGET_KEY"


def mac(key: bytes, purpose: str, *parts: bytes) -> bytes:
    """Return HMAC-SHA256 over the parts, each with its length before it, for one purpose only."""
    code = hmac.new(key, purpose.encode() + b"\0", hashlib.sha256)
    for part in parts:
        code.update(len(part).to_bytes(8, "big"))
        code.update(part)
    return code.digest()


def fingerprint(key: bytes) -> str:
    """Return what the ledger keeps of its key, to know it again."""
    return mac(key, "fingerprint").hex()[:16]


def find_key(given: bytes | str | Path | None, beside: Path | None, known: str | None) -> bytes:
    """Return the key of a ledger: the one given (bytes, a file, hexadecimal), the environment's, or the file beside it.

    Args:
        given: From the caller; ``None`` looks further.
        beside: The key file of an SQLite ledger; ``None`` for a server.
        known: Fingerprint that the ledger holds; ``None`` for a new ledger, whose key file is made if it is missing.

    Raises:
        BudgetError: There is no key, it is not 32 bytes, or it is another ledger's.
    """
    key, place = _look(given, beside, may_create=known is None)
    if known is not None and fingerprint(key) != known:
        raise BudgetError(f"the key from {place} is not this ledger's (it has {known}): give the key it was made with")
    return key


def _look(given: bytes | str | Path | None, beside: Path | None, may_create: bool) -> tuple[bytes, str]:
    if isinstance(given, bytes):
        return _checked(given, "the argument"), "the argument"
    if isinstance(given, str) and re.fullmatch(r"[0-9a-fA-F]{64}", given):
        return bytes.fromhex(given), "the argument"
    if given is not None:
        try:
            file = Path(given).expanduser()
        except RuntimeError as error:  # ~nobody
            raise BudgetError(f"the ledger's key {given} cannot be looked up ({error}): give another path") from error
        return _from_file(file, may_create), str(given)
    text = os.environ.get(ENVIRONMENT)
    if text:
        if not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", text):
            raise BudgetError(f"{ENVIRONMENT} is not 64 hexadecimal digits (its value is not shown)")
        return bytes.fromhex(text.strip()), ENVIRONMENT
    if beside is None:
        raise BudgetError(
            f"a ledger on a server needs its key: budget.key=FILE or --key FILE (made when the ledger is new), or "
            f"{ENVIRONMENT} with 64 hexadecimal digits"
        )
    return _from_file(beside, may_create), str(beside)


def _from_file(file: Path, may_create: bool) -> bytes:
    try:
        if may_create and not file.exists():
            return _create(file)
        text = read_file(file, 4096).decode()
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise BudgetError(
            f"the ledger's key {file} is missing: put it back, or its images and entries cannot be recognised"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise BudgetError(f"the ledger's key {file} cannot be read ({reason}): give the file that holds it") from None
    if not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", text):
        raise BudgetError(f"{file} is not a key: 64 hexadecimal digits are expected")
    if mode & stat.S_IRWXO:  # a team may share it by its group
        raise BudgetError(f"the ledger's key {file} can be read by everyone: chmod o= {file}")
    return bytes.fromhex(text.strip())


def _create(file: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, key.hex().encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    return key


def _checked(key: bytes, place: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise BudgetError(f"the key from {place} has {len(key)} bytes, not {KEY_BYTES}")
    return key

"""Keys that open sealed files: from a file, the environment or a keyring, never from the command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SealError
from ..support.files import read_file

if TYPE_CHECKING:
    from types import ModuleType

IDENTITY, PASSPHRASE = "DPTRAIN_SEAL_IDENTITY", "DPTRAIN_SEAL_PASSPHRASE"
KEYRING_SERVICE = "dptrain"
_SECRET, _PUBLIC = "AGE-SECRET-KEY-", "age1"
_LEAST_CHARACTERS = 12
_MOST_BYTES = 1 << 16


def pyrage() -> ModuleType:
    """The age implementation (pyrage: Python bindings of rage).

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import pyrage as library
    except ImportError:
        raise ConfigError("sealed files need the package pyrage: pip install 'dptrain[seal]'") from None
    return library


@dataclass(frozen=True)
class Keys:
    """What can open a sealed file; its values are in no ``repr``.

    Attributes:
        identities: X25519 secret keys.
        passphrase: For files sealed with one.
        place: Where they come from, for messages.
    """

    identities: tuple[Any, ...] = field(default=(), repr=False)
    passphrase: str | None = field(default=None, repr=False)
    place: str = "nowhere"


def find_keys(
    identity: str | Path | None = None,
    passphrase_file: str | Path | None = None,
    keyring: str | None = None,
) -> Keys:
    """Return the keys of the first place that is given: a file, a keyring's entry, else the environment.

    Args:
        identity: File of age identities (``AGE-SECRET-KEY-1...``), one a line; ``#`` begins a comment.
        passphrase_file: File whose first line is the passphrase.
        keyring: Name of an entry of the service ``dptrain`` in the system's keyring, an identity or a passphrase.

    Raises:
        ConfigError: More than one is given, or one that cannot be read, holds no key or is open to everyone.
        SealError: There is none at all.
    """
    given = {"identity": identity, "passphrase_file": passphrase_file, "keyring": keyring}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are given: give only one place for the key")
    if identity is not None:
        return Keys(_identities(_secret_file(identity, "identity"), str(identity)), None, str(identity))
    if passphrase_file is not None:
        return Keys(
            (),
            _passphrase(_secret_file(passphrase_file, "passphrase_file"), str(passphrase_file)),
            str(passphrase_file),
        )
    if keyring is not None:
        return _from_text(_from_keyring(keyring), f"the keyring's entry {keyring}")
    if text := os.environ.get(IDENTITY):
        return Keys(_identities(text, IDENTITY), None, IDENTITY)
    if text := os.environ.get(PASSPHRASE):
        return Keys((), _passphrase(text, PASSPHRASE), PASSPHRASE)
    raise SealError(
        f"no key: set {IDENTITY} or {PASSPHRASE} to it, or give a file or a keyring's entry (dptrain unseal: "
        "--identity, --passphrase-file, --keyring; dptrain train: seal.identity, seal.keyring)"
    )


def recipients_of(given: Iterable[str]) -> list[Any]:
    """Return the public keys that texts name: ``age1...`` itself, or a file of such lines.

    Raises:
        ConfigError: One is neither, or is a secret key (which is then not shown).
    """
    library = pyrage()
    found = []
    for text in given:
        refuse_secret(text, "a recipient")
        lines = [text] if text.startswith(_PUBLIC) else _recipient_lines(Path(text).expanduser())
        for line in lines:
            try:
                found.append(library.x25519.Recipient.from_str(line))
            except library.RecipientError as error:
                raise ConfigError(
                    f"recipient {line[:80]} is not an age public key ({error}): age1... is expected"
                ) from None
    return found


def refuse_secret(text: str, what: str) -> None:
    """Refuse a secret key where a place or a public key belongs: command lines are seen by others, and logged."""
    if _SECRET.lower() in text.lower():
        raise ConfigError(
            f"{what} is a secret key (not shown): it must not be on a command line or in a configuration; put it in "
            "a file, and make a new one, since this one was seen"
        )


def new_identity(file: str | Path) -> str:
    """Make a key pair, write the secret key to a new file for its owner's eyes only, and return the public key.

    Raises:
        ConfigError: The file is there already, or cannot be written.
    """
    identity = pyrage().x25519.Identity.generate()
    public = str(identity.to_public())
    path = Path(file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{file} already exists: a key that is overwritten opens nothing any more") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}): choose another place") from None
    with os.fdopen(handle, "w") as stream:
        stream.write(f"# public key: {public}\n{identity}\n")
        stream.flush()
        os.fsync(handle)
    return public


def _recipient_lines(file: Path) -> Sequence[str]:
    try:
        text = read_file(file, _MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"recipient {file} is neither age1... nor a file of such lines ({reason})") from None
    refuse_secret(text, f"a line of {file}")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"{file} names no recipient: lines of age1... are expected")
    return lines


def _secret_file(file: str | Path, name: str) -> str:
    refuse_secret(str(file), name)
    path = Path(file).expanduser()
    try:
        text, mode = read_file(path, _MOST_BYTES).decode(), path.stat().st_mode
    except (OSError, ValueError) as error:
        _refuse_public(str(file), f"{name} is")
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"{name} {file} cannot be read ({reason}): give the file that holds the key") from None
    if name == "identity":  # before its mode: a public key may be read by everyone
        _refuse_public(text, f"{name} {file} holds")
    if mode & stat.S_IRWXO:  # a team may share it by its group
        raise ConfigError(f"{name} {file} can be read by everyone: chmod o= {file}")
    return text


def _refuse_public(text: str, what: str) -> None:
    """A public key closes and does not open; the two halves are easily taken for one another."""
    if any(line.strip().startswith(_PUBLIC) for line in text.splitlines()):
        raise ConfigError(
            f"{what} a public key, which seals and does not open: give the file of the secret key, with a line "
            f"{_SECRET}1..., which dptrain seal --new-key wrote"
        )


def _identities(text: str, place: str) -> tuple[Any, ...]:
    library = pyrage()
    _refuse_public(text, f"{place} holds")
    lines = [line.strip() for line in text.splitlines()]
    try:
        found = tuple(library.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#"))
    except library.IdentityError:
        raise ConfigError(
            f"{place} holds a line that is not an age identity (it is not shown): {_SECRET}1... is expected, not "
            "a file name"
        ) from None
    if not found:
        raise ConfigError(f"{place} holds no age identity: a line {_SECRET}1... is expected")
    return found


def _passphrase(text: str, place: str) -> str:
    line = text.splitlines()[0] if text else ""
    if len(line) < _LEAST_CHARACTERS:
        raise ConfigError(
            f"the passphrase in {place} has fewer than {_LEAST_CHARACTERS} characters: choose a longer one"
        )
    return line


def _from_text(text: str, place: str) -> Keys:
    if text.strip().upper().startswith(_SECRET):
        return Keys(_identities(text, place), None, place)
    return Keys((), _passphrase(text, place), place)


def _from_keyring(name: str) -> str:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise ConfigError("keyring needs the package of that name: pip install 'dptrain[seal]'") from None
    refuse_secret(name, "keyring")
    try:
        text = keyring.get_password(KEYRING_SERVICE, name)
    except keyring.errors.KeyringError as error:
        raise ConfigError(f"the keyring cannot be read ({' '.join(str(error).split())[:120]})") from None
    if not text:
        raise ConfigError(f"the keyring has no entry {name}: keyring set {KEYRING_SERVICE} {name}")
    return text

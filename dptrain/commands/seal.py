"""``dptrain seal`` and ``dptrain unseal``: files encrypted at rest, in the format of age."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import ConfigError, SealError
from .options import Commands


def register(commands: Commands) -> None:
    """Add both commands."""
    seal = commands.add_parser(
        "seal",
        help="encrypt weights, checkpoints, ledger exports, datasets (age format)",
        epilog="Keys come from a file, a keyring or the environment ($DPTRAIN_SEAL_PASSPHRASE), never from here.",
    )
    seal.add_argument("source", nargs="?", metavar="SOURCE", help="a file, a folder, a data.yaml, or - for stdin")
    seal.add_argument("-o", "--output", type=Path, help="default SOURCE.age, SOURCE.tar.age or NAME.seal")
    seal.add_argument(
        "--to", action="append", default=[], metavar="RECIPIENT", help="an age public key (age1...) or a file of them; "
        "may be given again"
    )  # fmt: skip
    seal.add_argument("--passphrase-file", metavar="FILE", help="seal with a passphrase instead: its first line")
    seal.add_argument("--keyring", metavar="NAME", help="or the passphrase of this entry of the keyring")
    seal.add_argument(
        "--new-key", metavar="FILE", help="make a key pair: the secret key goes there, the public is shown"
    )
    seal.set_defaults(command=_seal)

    unseal = commands.add_parser(
        "unseal",
        help="decrypt what seal, or age, has encrypted",
        epilog="Without an option the key is $DPTRAIN_SEAL_IDENTITY or $DPTRAIN_SEAL_PASSPHRASE.",
    )
    unseal.add_argument("source", metavar="FILE", help="a sealed file; .seal and .tar.age become a folder")
    unseal.add_argument("-o", "--output", type=Path, help="default: the name without .age or .seal")
    unseal.add_argument("--identity", metavar="FILE", help="file with the secret key (AGE-SECRET-KEY-1...)")
    unseal.add_argument("--passphrase-file", metavar="FILE", help="file whose first line is the passphrase")
    unseal.add_argument("--keyring", metavar="NAME", help="entry of the keyring that holds either")
    unseal.set_defaults(command=_unseal)


def _seal(options: argparse.Namespace) -> int:
    from ..sealing import Keys, find_keys, new_identity
    from ..sealing.keys import refuse_secret
    from ..toolbox.seal import seal

    for text in (*options.to, options.source or "", options.new_key or ""):
        refuse_secret(text, "an argument")
    if options.new_key is not None:
        if options.source is not None:
            raise ConfigError("--new-key makes a key and seals nothing: seal with --to and the key that it shows")
        print(new_identity(options.new_key))
        return 0
    if options.source is None:
        raise ConfigError("give what to seal, or --new-key FILE (dptrain seal --help)")
    keys: Keys | None = None
    if not options.to:
        try:
            keys = find_keys(None, options.passphrase_file, options.keyring)
        except SealError:
            raise ConfigError("give --to age1..., or a passphrase: --passphrase-file FILE or --keyring NAME") from None
        if keys.passphrase is None:
            raise ConfigError(f"{keys.place} holds an identity, and sealing needs --to age1... or a passphrase")
    elif options.passphrase_file or options.keyring:
        raise ConfigError("--to and a passphrase cannot be combined: give one")
    print(seal(options.source, options.output, recipients=options.to, keys=keys))
    return 0


def _unseal(options: argparse.Namespace) -> int:
    from ..sealing import find_keys
    from ..sealing.keys import refuse_secret
    from ..toolbox.seal import unseal

    refuse_secret(options.source, "an argument")
    keys = find_keys(options.identity, options.passphrase_file, options.keyring)
    print(unseal(options.source, options.output, keys=keys))
    return 0

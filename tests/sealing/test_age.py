"""Sealed files: open with the right key only, and not at all once a bit is another."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyrage
import pytest

from dptrain import ConfigError, SealError, seal, unseal
from dptrain.commands.main import main
from dptrain.sealing import Keys, find_keys, new_identity
from dptrain.sealing.age import decrypt, encrypt
from dptrain.sealing.keys import IDENTITY, PASSPHRASE

CHUNK, TAG = 65536, 16
PLAIN = bytes(range(256)) * 1000  # three whole chunks and a part


@pytest.fixture(autouse=True)
def _no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (IDENTITY, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, str]:
    """The file of a secret key, and its public key."""
    return tmp_path / "key.txt", new_identity(tmp_path / "key.txt")


def sealed_file(folder: Path, public: str) -> Path:
    (folder / "last.pt").write_bytes(PLAIN)
    return seal(folder / "last.pt", recipients=[public])


def test_what_is_sealed_opens_again_and_is_nowhere_in_the_file(tmp_path: Path, pair: tuple[Path, str]) -> None:
    sealed = sealed_file(tmp_path, pair[1])
    assert sealed == tmp_path / "last.pt.age" and PLAIN[:64] not in sealed.read_bytes()
    assert unseal(sealed, tmp_path / "again", keys=find_keys(pair[0])).read_bytes() == PLAIN
    assert pair[0].stat().st_mode & 0o077 == 0


def test_it_is_the_age_format_in_both_directions(tmp_path: Path, pair: tuple[Path, str]) -> None:
    """pyrage alone, without dptrain, opens what dptrain sealed, and the other way round."""
    other = pyrage.x25519.Identity.generate()
    sealed = seal(_file(tmp_path / "x", PLAIN), recipients=[pair[1], str(other.to_public())])
    assert pyrage.decrypt(sealed.read_bytes(), [other]) == PLAIN
    foreign = _file(tmp_path / "y.age", pyrage.encrypt(PLAIN, [pyrage.x25519.Recipient.from_str(pair[1])]))
    assert unseal(foreign, keys=find_keys(pair[0])).read_bytes() == PLAIN


def _file(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def _regions(data: bytes) -> dict[str, int]:
    """A byte of every part of an age file: each line of the header, the nonce, each chunk and its tag."""
    header = data.index(b"\n--- ") + 5
    end = data.index(b"\n", header) + 1
    first = end + 16
    lines = {"version": 3, "recipient kind": 25, "ephemeral key": 40, "file key": data.index(b"\n", 40) + 9}
    chunks = {"first chunk": first + 9, "first tag": first + CHUNK + 3, "middle chunk": first + CHUNK + TAG + 5000}
    last = {"last chunk": len(data) - 100, "last tag": len(data) - 1}
    return {**lines, "header mac": header + 5, "nonce": end + 4, **chunks, **last}


def _damaged(data: bytes) -> dict[str, bytes]:
    end = data.index(b"\n", data.index(b"\n--- ") + 5) + 1
    body, step = end + 16, CHUNK + TAG
    chunks = [data[at : at + step] for at in range(body, len(data), step)]
    head = data[:body]
    found = {f"a bit of the {name}": _flip(data, at) for name, at in _regions(data).items()}
    return found | {
        "cut at a chunk border": head + b"".join(chunks[:2]),
        "cut before the last chunk": head + b"".join(chunks[:-1]),
        "cut in a chunk": data[:-7],
        "cut after the nonce": head,
        "cut after the header": data[:end],
        "cut in the header": data[:60],
        "nothing": b"",
        "chunks reordered": head + b"".join([chunks[1], chunks[0], *chunks[2:]]),
        "a chunk twice": head + b"".join([chunks[0], chunks[0], *chunks[1:]]),
        "a chunk left out": head + b"".join([chunks[0], *chunks[2:]]),
        "bytes after the end": data + b"x",
        "a chunk of another file": head + b"".join([chunks[0], os.urandom(step), *chunks[2:]]),
    }


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_damage_is_one_error_and_nothing_is_written(tmp_path: Path, pair: tuple[Path, str]) -> None:
    good = sealed_file(tmp_path, pair[1]).read_bytes()
    keys = find_keys(pair[0])
    bad = tmp_path / "bad"
    bad.mkdir()
    cases = _damaged(good)
    assert len(cases) == 23
    for name, data in cases.items():
        (bad / "x.pt.age").write_bytes(data)
        with pytest.raises(SealError) as caught:
            unseal(bad / "x.pt.age", keys=keys)
        assert "x.pt.age" in str(caught.value) and "\n" not in str(caught.value), name
        assert [file.name for file in bad.iterdir()] == ["x.pt.age"], name


def test_another_key_opens_nothing(tmp_path: Path, pair: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    sealed = sealed_file(tmp_path, pair[1])
    new_identity(tmp_path / "other.txt")
    out = tmp_path / "out"
    assert main(["unseal", str(sealed), "-o", str(out), "--identity", str(tmp_path / "other.txt")]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and "another key" in captured.err and not out.exists()
    assert main(["unseal", str(sealed), "-o", str(out), "--identity", str(pair[0])]) == 0
    assert out.read_bytes() == PLAIN


def test_a_passphrase_seals_and_only_it_opens(
    tmp_path: Path, pair: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PASSPHRASE, "correct horse battery")
    sealed = seal(_file(tmp_path / "ledger.json", PLAIN), keys=find_keys())
    assert b"-> scrypt " in sealed.read_bytes()[:60]
    assert unseal(sealed, tmp_path / "again").read_bytes() == PLAIN
    monkeypatch.setenv(PASSPHRASE, "correct horse bat")
    assert main(["unseal", str(sealed), "-o", str(tmp_path / "no")]) == 2
    with pytest.raises(SealError, match="sealed with a passphrase"):
        unseal(sealed, tmp_path / "no", keys=find_keys(pair[0]))
    with pytest.raises(SealError, match="sealed to public keys"):
        unseal(sealed_file(tmp_path, pair[1]), tmp_path / "no", keys=Keys((), "correct horse battery", "x"))
    assert not (tmp_path / "no").exists()
    captured = capsys.readouterr()
    assert "horse" not in captured.out + captured.err


def test_keys_come_from_a_file_the_environment_or_a_keyring(
    tmp_path: Path, pair: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = sealed_file(tmp_path, pair[1])
    with pytest.raises(SealError, match="no key"):
        find_keys()
    monkeypatch.setenv(IDENTITY, pair[0].read_text())
    assert unseal(sealed, tmp_path / "one").read_bytes() == PLAIN
    monkeypatch.delenv(IDENTITY)
    kept = {("dptrain", "lab"): pair[0].read_text().splitlines()[1], ("dptrain", "words"): "correct horse battery"}
    monkeypatch.setattr("keyring.get_password", lambda service, name: kept.get((service, name)))
    assert unseal(sealed, tmp_path / "two", keys=find_keys(keyring="lab")).read_bytes() == PLAIN
    assert find_keys(keyring="words").passphrase == "correct horse battery"
    with pytest.raises(ConfigError, match="no entry nobody"):
        find_keys(keyring="nobody")
    with pytest.raises(ConfigError, match="one place"):
        find_keys(pair[0], keyring="lab")


def test_a_secret_key_is_never_shown(
    tmp_path: Path, pair: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    secret = pair[0].read_text().splitlines()[1]
    (tmp_path / "x").write_bytes(PLAIN)
    (tmp_path / "mixed").write_text(f"{secret}\nnonsense\n")
    (tmp_path / "mixed").chmod(0o600)
    (tmp_path / "open").write_text(secret)
    (tmp_path / "open").chmod(0o644)
    for arguments in (
        ["unseal", str(tmp_path / "x"), "--identity", secret],
        ["seal", str(tmp_path / "x"), "--to", secret],
        ["seal", str(tmp_path / "x"), "--to", str(pair[0])],
        ["seal", secret, "--to", pair[1]],
        ["unseal", str(tmp_path / "x"), "--keyring", secret],
        ["unseal", str(tmp_path / "x"), "-o", str(tmp_path / "y"), "--identity", str(tmp_path / "mixed")],
        ["unseal", str(tmp_path / "x"), "-o", str(tmp_path / "y"), "--identity", str(tmp_path / "open")],
        ["train", "model=yolo26n.yaml", "data=x.seal", "privacy.epsilon=8", f"seal.identity={secret}"],
        ["train", "model=yolo26n.yaml", "data=x.seal", "privacy.epsilon=8", f"seal.recipients=[{secret}]"],
    ):
        assert main(arguments) == 2, arguments[0]
        captured = capsys.readouterr()
        assert secret[20:] not in captured.out + captured.err
        assert len(captured.err.splitlines()) == 1
    keys = find_keys(pair[0])
    assert secret[20:] not in repr(keys) and "horse" not in repr(Keys((), "correct horse", "x"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("seal", "what to seal"),
        ("seal {tmp}/no --to {public}", "is not there"),
        ("seal {tmp}/x", "give --to age1"),
        ("seal {tmp}/x --to age1nonsense", "is not an age public key"),
        ("seal {tmp}/x --to {tmp}/nofile", "neither age1"),
        ("seal {tmp}/x --to {public} --passphrase-file {tmp}/x", "cannot be combined"),
        ("seal {tmp}/x --to {public} -o {tmp}/x", "already exists"),
        ("seal - --to {public}", "-o FILE"),
        ("seal --new-key {tmp}/x", "already exists"),
        ("seal {tmp}/x --new-key {tmp}/k", "seals nothing"),
        ("unseal {tmp}/x", "does not end in"),
        ("unseal {tmp}/x -o {tmp}/y --identity {key}", "not a sealed file"),
        ("unseal {tmp}/no.age", "is not there"),
        ("unseal {tmp}/x -o {tmp}/y --identity {tmp}/lab.pub", "holds a public key, which seals and does not open"),
        ("unseal {tmp}/x -o {tmp}/y --identity {tmp}/lab.pub.600", "holds a public key"),
        ("unseal {tmp}/x -o {tmp}/y --identity {public}", "identity is a public key"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    tmp_path: Path, pair: tuple[Path, str], arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_bytes(b"short")
    (tmp_path / "x").chmod(0o600)
    for name, mode in (("lab.pub", 0o644), ("lab.pub.600", 0o600)):
        (tmp_path / name).write_text(f"{pair[1]}\n")
        (tmp_path / name).chmod(mode)
    before = sorted(tmp_path.iterdir())
    given = arguments.format(tmp=tmp_path, public=pair[1], key=pair[0]).split()
    if given == ["unseal", str(tmp_path / "x")] or given[:2] == ["unseal", str(tmp_path / "no.age")]:
        given += ["--identity", str(pair[0])]
    assert main(given) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and words in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_the_ledgers_export_is_sealed_from_a_pipe(
    tmp_path: Path, pair: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Input:
        buffer = io.BytesIO(PLAIN)

    monkeypatch.setattr("sys.stdin", Input())
    assert main(["seal", "-", "-o", str(tmp_path / "ledger.json.age"), "--to", pair[1]]) == 0
    assert unseal(tmp_path / "ledger.json.age", keys=find_keys(pair[0])).read_bytes() == PLAIN


def test_a_folder_is_sealed_as_an_archive(tmp_path: Path, pair: tuple[Path, str]) -> None:
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "last.pt").write_bytes(PLAIN)
    (run / "empty").write_bytes(b"")
    sealed = seal(run, recipients=[pair[1]])
    assert sealed.name == "run.tar.age"
    again = unseal(sealed, tmp_path / "again", keys=find_keys(pair[0]))
    assert (again / "weights" / "last.pt").read_bytes() == PLAIN and (again / "empty").read_bytes() == b""
    good = sealed.read_bytes()
    for name, data in _damaged(good).items():
        sealed.write_bytes(data)
        with pytest.raises(SealError):
            unseal(sealed, tmp_path / "no", keys=find_keys(pair[0]))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["again", "key.txt", "run", "run.tar.age"], name


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, pair: tuple[Path, str]) -> None:
    import tarfile

    for name, kind in (("../evil", tarfile.REGTYPE), ("/evil", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
        content, sealed = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
            archive.addfile(entry)
        content.seek(0)
        encrypt(content, sealed, [pyrage.x25519.Recipient.from_str(pair[1])])
        (tmp_path / "x.tar.age").write_bytes(sealed.getvalue())
        with suppress(SealError):
            unseal(tmp_path / "x.tar.age", tmp_path / "sub" / f"out{kind.decode()}", keys=find_keys(pair[0]))
        assert not (tmp_path / "sub" / "evil").exists() and not Path("/evil").exists()
        assert not (tmp_path / "sub" / f"out{kind.decode()}" / "link").exists()
        (tmp_path / "x.tar.age").unlink()


def test_a_full_disk_is_not_taken_for_a_forgery(tmp_path: Path, pair: tuple[Path, str]) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            pass

    sealed = sealed_file(tmp_path, pair[1])
    with sealed.open("rb") as stream, pytest.raises(OSError, match="No space"):
        decrypt(stream, Full(), find_keys(pair[0]), "x")  # type: ignore[arg-type]

"""Weights files as files: downloaded whole, hashed, and the same afterwards as when they came."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from rich.console import Console
from rich.progress import wrap_file

from virnucpro_pl.errors import WeightsError

log = logging.getLogger(__name__)

SEED = 0
"""Of random weights."""
_SMALL = 1 << 20
"""Bytes up to which a file is hashed while others wait: a config or a tokenizer, not weights."""


def named_weights(weights: str) -> Path:
    """The file or folder that a user has named.

    Raises:
        WeightsError: If there is none.
    """
    path = Path(weights).expanduser()
    if not path.exists():
        raise WeightsError(f"{path}: no such weights file or folder")
    return path


def download(url: str, path: Path) -> None:
    """Download a published file, with a progress bar, to a temporary name, then rename.

    Its SHA-256 is kept beside it, as `sha256sum` writes it, and is checked whenever it is used.

    Raises:
        WeightsError: Without a network, or if the connection breaks off; says which file is wanted,
            from where and where to put it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    log.info("Downloading %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, temporary)
        digest = _digest(temporary).hex()
        _beside(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")
        temporary.replace(path)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"The published weights {path.name} are not on this machine and cannot be downloaded "
            f"({error}). Fetch {url} on a machine with a network and put it at {path}, or give a "
            "file as the embedder's `weights`; `weights: random` is there for a trial."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where there is no such folder
            temporary.unlink()


def _fetch(url: str, path: Path) -> None:
    with urlopen(url, timeout=60) as response:
        expected = int(response.headers.get("Content-Length") or 0)
        console, name = Console(stderr=True), url.rpartition("/")[2]
        with (
            wrap_file(response, expected, description=name, console=console) as source,
            path.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
    arrived = path.stat().st_size
    if expected and arrived != expected:
        raise OSError(f"the connection broke off after {arrived} of {expected} bytes")


def hash_files(files: Sequence[Path]) -> Future[str]:
    """Start hashing files in a thread, beside their loading; one SHA-256 over them in order.

    The result is a WeightsError where a file is no longer what was downloaded.
    """
    future: Future[str] = Future()

    def hash_them() -> None:
        try:
            future.set_result(_sha256(files))
        except BaseException as error:  # noqa: BLE001 - as concurrent.futures' own threads do:
            future.set_exception(error)  # one that never ends would be waited for for ever

    # No pool: Python would wait for its thread, half a minute for 12 GB, before it lets a run end.
    threading.Thread(target=hash_them, name="sha256", daemon=True).start()
    return future


def recorded_hash(files: Sequence[Path]) -> str | None:
    """What `hash_files` will give, where no large file must be read for it; None elsewhere.

    A file that is no longer what was recorded is found by `hash_files`.
    """
    digests = []
    with contextlib.suppress(OSError):
        for file in files:
            recorded = _recorded(file, tell=False)
            if recorded is None and file.stat().st_size > _SMALL:
                return None
            digests.append(bytes.fromhex(recorded) if recorded else _digest(file))
        return _joined(digests)
    return None


def hash_of(file: Path) -> str:
    """SHA-256 of a small weights file."""
    return _sha256([file])


def _sha256(files: Sequence[Path]) -> str:
    return _joined([_checked_digest(file) for file in files])


def _joined(digests: Sequence[bytes]) -> str:
    """The hash of one file, or one hash over those of several."""
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()


def _checked_digest(file: Path) -> bytes:
    """SHA-256 of a file, which must be that of its download, if this is known.

    Raises:
        WeightsError: If it is not.
    """
    digest = _digest(file)
    recorded = _recorded(file)
    if recorded not in (None, digest.hex()):
        raise WeightsError(
            f"{file} is not what was downloaded: its SHA-256 is {digest.hex()}, not {recorded}, "
            "which was recorded then. Restore it, or remove it to have it downloaded again"
        )
    return digest


def _recorded(file: Path, tell: bool = True) -> str | None:
    """SHA-256 that was recorded at the download of a file, or that its publisher has given."""
    blob = file.resolve().name
    if file.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):
        return blob  # the Hugging Face cache names large files by their SHA-256
    beside = _beside(file)
    if not beside.is_file():
        return None
    line = re.fullmatch(
        r"([0-9a-f]{64})  .*\n", beside.read_text(encoding="utf-8", errors="replace")
    )
    if line is None and tell:
        log.warning("%s is not as sha256sum writes it: %s is not checked", beside, file)
    return line[1] if line else None


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _digest(file: Path) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()

"""Bounded cache on disk of an S3 bucket's large files, shared by many processes.

A process holds the files it reads by locks (flock) that the kernel drops with the process, however
that ends: what is held stays, what is not makes room for others, and nothing is left to mend.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from anneal.errors import UserError

SPARE = 1 << 30  # bytes of the disk that are left free
REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "NoSuchKey": "there is no such file",
    "404": "there is no such file",
    "AccessDenied": "access denied",
    "403": "access denied",
    "NoCredentialsError": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE",
}


class BucketError(UserError):
    """Refusal of a bucket, its server or the network."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, status=1)
        self.code = code  # S3's name for it, or the name of boto3's exception


class Bucket:
    """Files below s3://bucket/prefix, of a server that AWS_ENDPOINT_URL, AWS_PROFILE, ... say.

    Args:
        url: That address.
        attempts: How often a request is tried, with growing pauses: with 4 a server that refuses
            is told within 10 seconds, with 10 it has up to two minutes to come back.
    """

    def __init__(self, url: str, attempts: int = 4) -> None:
        self.url = url.rstrip("/")
        self.attempts = attempts
        self.name, _, self.prefix = self.url.removeprefix("s3://").partition("/")
        self._client: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def get(self, name: str) -> bytes:
        """Return the content of a small file."""
        with self._client_for(name) as (client, where):
            return bytes(client.get_object(**where)["Body"].read())

    def download(self, name: str, file: BinaryIO) -> None:
        """Write a file of the bucket into an open one."""
        from boto3.s3.transfer import TransferConfig

        one = TransferConfig(use_threads=False, multipart_threshold=1 << 40)
        with self._client_for(name) as (client, where):
            client.download_fileobj(**where, Fileobj=file, Config=one)

    @contextmanager
    def _client_for(self, name: str) -> Iterator[tuple[Any, dict[str, str]]]:
        """Give a client of this process: one that came by a fork must not be used."""
        import boto3
        from boto3.exceptions import Boto3Error
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._client is None or self._client[0] != os.getpid():
                retries = {"mode": "standard", "total_max_attempts": self.attempts}
                config = Config(connect_timeout=5, read_timeout=20, retries=retries)
                self._client = os.getpid(), boto3.Session().client("s3", config=config)
            yield self._client[1], {"Bucket": self.name, "Key": f"{self.prefix}/{name}".lstrip("/")}
        except (ClientError, BotoCoreError, Boto3Error, ValueError, OSError) as e:
            code = str(getattr(e, "response", {}).get("Error", {}).get("Code") or type(e).__name__)
            told = REASONS.get(code, " ".join(str(e).split()))
            raise BucketError(f"{self.url}/{name}: {told}", code) from e


@dataclass(eq=False)
class Cached:
    """Files of a bucket on disk, no more than fit.

    Their folder lies in the cache's `home`, which several buckets may share and the bound applies
    to. The files that processes hold may exceed it.
    """

    bucket: Bucket
    folder: Path
    home: Path
    max_bytes: int
    _ahead: tuple[int, threading.Thread] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}

    def hold(self, name: str, size: int) -> BinaryIO:
        """Return the file, fetched if need be; it stays on disk until this handle is closed."""
        path = self.folder / name
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                self._fetch(name, size)
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(file, path):
                if os.fstat(file.fileno()).st_size == size:
                    os.utime(path)
                    return file
                path.unlink()  # the machine crashed before the disk had all of it
            file.close()

    def fetch_ahead(self, files: list[tuple[str, int]]) -> None:
        """Fetch these files in the background, if there is room for them."""
        if self._ahead and self._ahead[0] == os.getpid() and self._ahead[1].is_alive():
            return
        if missing := [f for f in files if not (self.folder / f[0]).exists()]:
            thread = threading.Thread(target=self._fetch_all, args=(missing,), daemon=True)
            self._ahead = os.getpid(), thread
            thread.start()

    def _fetch_all(self, files: list[tuple[str, int]]) -> None:
        with suppress(UserError, RuntimeError, OSError):  # who needs the file will meet it again
            for name, size in files:
                self._fetch(name, size, ahead=True)

    def _fetch(self, name: str, size: int, ahead: bool = False) -> None:
        """Fetch a file, whole or not at all. `ahead`: without waiting or exceeding the bound."""
        path, part = self.folder / name, self.folder / f"{name}.part"
        with _locked(self.folder / f"{name}.lock", wait=not ahead) as mine:
            if not mine or path.exists() or (file := self._reserve(part, size, ahead)) is None:
                return
            try:
                with file:
                    self.bucket.download(name, file)
                    file.flush()
                    if (found := file.tell()) != size:
                        where = f"{self.bucket.url}/{name}"
                        raise UserError(f"{where}: {found} bytes, not {size}: upload it again", 1)
                    part.rename(path)
                    fcntl.flock(file, fcntl.LOCK_UN)
            finally:
                part.unlink(missing_ok=True)

    def _reserve(self, part: Path, size: int, ahead: bool) -> BinaryIO | None:
        """Return a new file, held and of full size; remove others that nobody holds for it."""
        with _locked(self.home / "lock"):
            part.unlink(missing_ok=True)
            found = []
            for path in (p for p in self.home.rglob("*") if p.suffix in (".bin", ".part")):
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
            used = sum(s for _, s, _ in found)
            bound = min(self.max_bytes, used + shutil.disk_usage(self.home).free - SPARE)
            excess = used + size - bound
            for _, length, path in sorted(found):
                if excess > 0 and _remove(path):
                    excess -= length
            if excess > 0 and ahead:
                return None
            file = part.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(size)
            return file


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Give whether this process is the only one in here, by a file for nothing else."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # Closing alone would leave it to a process that was forked in between.
            fcntl.flock(file, fcntl.LOCK_UN)


def _remove(path: Path) -> bool:
    """Remove a file unless anybody holds it, and return whether it is gone."""
    try:
        with suppress(FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False

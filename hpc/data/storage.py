"""Files and objects behind the same few functions: a `uri` is a local path, s3://bucket/key or s3://profile@bucket/key.

Everything that is written appears whole or not at all, and `put_new` never replaces what is already there: link(2) for
files, If-None-Match for objects. Keys are taken as they are: spaces, unicode, "+", "%" and "#" need no quoting.
AWS_PROFILE, AWS_ENDPOINT_URL and the other AWS_* variables choose the account and the store. boto3 is imported when the
first object is touched, so that login nodes do without it. One long file, because it is the only door to boto3.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import socket
import stat as modes
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

MIB = 1024**2
STALE_LOCK = 120.0  # seconds; a lock is held for one rename


class Entry(msgspec.Struct, frozen=True):
    """One file or object."""

    uri: str
    size: int
    """Bytes."""
    etag: str
    """What changes when the bytes do: "mtime_ns-size" (hexadecimal) for files, the ETag for objects."""


class StorageError(Exception):
    """Where, what happened, what to do."""

    def __init__(self, uri: str, what: str, do: str, code: str = "") -> None:
        super().__init__(uri, what, do, code)
        self.uri, self.what, self.do = uri, what, do
        self.code = code
        """The store's own word for it, e.g. "AccessDenied", or the system's, e.g. "ENOSPC"."""

    def __str__(self) -> str:
        return f"{self.uri}: {self.what}. {self.do}"


class Changed(StorageError):
    """The bytes are no longer those that the ETag names."""

    def __init__(self, uri: str, expected: str, found: str = "") -> None:
        what = f"it changed while in use (ETag {expected} expected" + (f", {found} found)" if found else ")")
        super().__init__(uri, what, "Leave inputs alone while a run reads them; plan again to take the new one", "")
        self.args = (uri, expected, found)


def s3() -> Any:
    from hpc.data import s3 as module  # it needs boto3, which a login node may do without

    return module


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def public(uri: str) -> str:
    """As others have it: public("s3://profile@bucket/key") -> "s3://bucket/key", since profiles are this machine's."""
    return re.sub(r"^s3://[^/@]*@", "s3://", uri)


def join(base: str, *parts: str) -> str:
    """join("s3://bucket/run/", "clips", "000001.tar") -> "s3://bucket/run/clips/000001.tar"; paths alike."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def listing(folder: str) -> Iterator[Entry]:
    """Every file below a folder (or the one file or object of that very name), in the order of its path's characters.

    Hidden names (leading dot, at any depth) and S3's zero-length "folder" keys are left out. Links are followed, each
    linked folder once. A folder that does not exist lists as empty, as a prefix without objects does on S3.
    """
    if is_s3(folder):
        yield from s3().listing(folder)
        return
    path = _path(folder)
    with _explained(folder):
        try:
            info = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if modes.S_ISDIR(info.st_mode):
            yield from _scan(str(path), {(info.st_dev, info.st_ino)})
        else:
            yield Entry(str(path), info.st_size, _etag(info))


def stat(uri: str) -> Entry | None:
    """One file or object; None where there is none."""
    if is_s3(uri):
        return s3().stat(uri)
    with _explained(uri):
        try:
            info = _path(uri).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
    return Entry(uri, info.st_size, _etag(info)) if modes.S_ISREG(info.st_mode) else None


def open(uri: str, etag: str | None = None) -> BinaryIO:
    """Open for reading; the file is seekable.

    An object is read in blocks of 4 MiB, ahead of the reader, all from the version that was there when it was opened.
    Raises FileNotFoundError; raises Changed if that is not the version that `etag` names, or if the object is replaced
    while it is read.
    """
    if is_s3(uri):
        return s3().open(uri, etag)
    with _explained(uri):
        file = _path(uri).open("rb")
        if etag is not None and (found := _etag(os.fstat(file.fileno()))) != etag:
            file.close()
            raise Changed(uri, etag, found)
    return file


def read(uri: str, start: int = 0, end: int | None = None, etag: str | None = None) -> bytes:
    """The bytes [start, end), less where the file ends before. Raises FileNotFoundError, and Changed like `open`."""
    if is_s3(uri):
        return s3().read(uri, start, end, etag)
    with open(uri, etag) as file, _explained(uri):
        file.seek(start)
        return file.read() if end is None else file.read(max(end - start, 0))


def sha256(uri: str) -> tuple[str, int]:
    """(hexadecimal digest, bytes), streaming."""
    digest, size = hashlib.sha256(), 0
    with open(uri) as file, _explained(uri):
        while block := file.read(MIB):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def put_new(uri: str, source: Path | bytes) -> bool:
    """Publish a file, or bytes, unless something is there already: True if this call made the object.

    False says that there is an object, not which: compare digests. Of any number of writers one gets True, and readers
    see the whole object or none. On an S3 store without conditional writes two writers within the same second may both
    get True; the object is whole even then, and is one of theirs.
    """
    return s3().put(uri, source, new=True) if is_s3(uri) else _local_put(uri, source, new=True)


def put(uri: str, source: Path | bytes) -> None:
    """Write a file, or bytes, in place of what is there: readers see the old object or the new, never a mixture."""
    if is_s3(uri):
        s3().put(uri, source, new=False)
    else:
        _local_put(uri, source, new=False)


def delete(uri: str) -> None:
    """Delete one file or object; fine if there is none."""
    if is_s3(uri):
        s3().delete(uri)
    else:
        with _explained(uri):
            _path(uri).unlink(missing_ok=True)


def sweep(folder: str, older_than_seconds: float) -> int:
    """Remove what killed writers left below a folder: temporary files, unfinished uploads. Returns how many."""
    limit, swept = time.time() - older_than_seconds, 0
    if is_s3(folder):
        return s3().sweep(folder, limit)
    with _explained(folder):
        for path in _path(folder).rglob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime <= limit:
                    path.unlink()
                    swept += 1
    return swept


# Local files


ADVICE = {
    errno.EACCES: "Check the owner and mode of it and of the folders above (ls -ld), and which user the job runs as",
    errno.EPERM: "Check the owner and mode of it and of the folders above (ls -ld), and which user the job runs as",
    errno.ENOSPC: "The file system is full (df -h): free some space, then retry",
    errno.EDQUOT: "Your quota on this file system is used up: free some space or ask for more, then retry",
    errno.EROFS: "The file system is mounted read-only here: write elsewhere, or ask why",
    errno.ESTALE: "The file server lost this file's handle: retry, and if it stays, leave the node out",
    errno.EIO: "The disk or file server failed: see dmesg on the node; retry on another node",
    errno.ENAMETOOLONG: "Shorten the name",
}
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the system's errors into StorageError; "no such file" keeps its own type."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        code = error.errno or 0
        what = (error.strerror or str(error)) + (f" ({error.filename})" if error.filename not in (None, uri) else "")
        do = ADVICE.get(code, "See the error above it in the log")
        raise StorageError(uri, what, do, errno.errorcode.get(code, "")) from error


def _path(uri: str) -> Path:
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise StorageError(uri, f"{scheme[0]} is not supported", "Give a path, or s3://bucket/key")
    return Path(uri)


def _etag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _scan(folder: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    """seen: device and inode of the folders reached through a link, so that a circle of links ends."""
    with os.scandir(folder) as entries:
        # A folder sorts as "name/", so that paths come in the order in which S3 lists keys.
        found = sorted((e.name + "/" if e.is_dir() else e.name, e) for e in entries if not e.name.startswith("."))
    for name, entry in found:
        try:
            info = entry.stat()
        except FileNotFoundError:  # deleted since, or a link to nowhere
            continue
        if name.endswith("/"):
            if entry.is_symlink():
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
            yield from _scan(entry.path, seen)
        elif modes.S_ISREG(info.st_mode):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise StorageError(repr(entry.path), "the file's name is not UTF-8", "Rename the file") from None
            yield Entry(entry.path, info.st_size, _etag(info))


def writer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{random.SystemRandom().getrandbits(48):012x}"


def _local_put(uri: str, source: Path | bytes, new: bool) -> bool:
    target = _path(uri)
    with _explained(uri):
        if new and target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.parent / f".tmp-{writer_name()}"
        try:
            if isinstance(source, Path):
                shutil.copyfile(source, temp)
            else:
                temp.write_bytes(source)
            _fsync(temp)
            if new:
                made = _link_new(temp, target)
            else:
                temp.replace(target)
                made = True
        finally:
            temp.unlink(missing_ok=True)
        _fsync(target.parent)
        return made


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some file systems cannot sync folders
            raise
    finally:
        os.close(handle)


def _link_new(temp: Path, target: Path) -> bool:
    """Give `temp` its final name unless that name is taken."""
    try:
        os.link(temp, target)
        return True
    except FileExistsError:
        return temp.stat().st_nlink > 1  # NFS may lose the reply to a link that it made, and refuse the second request
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    return _rename_new(temp, target)


def _rename_new(temp: Path, target: Path) -> bool:
    """Where link(2) is missing: rename under a lock file. A lock that is minutes old has lost its owner."""
    lock = target.parent / f".tmp-lock-{target.name}"
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK:
                    lock.rename(f"{temp}-lock").unlink()  # of several that try, one can rename it
            time.sleep(0.05)
    try:
        if target.exists():
            return False
        temp.rename(target)
        return True
    finally:
        lock.unlink(missing_ok=True)

"""Files and objects behind the same few functions: a `uri` is a local path, s3://bucket/key or s3://profile@bucket/key.

Everything that is written appears whole or not at all, and `put_new` never replaces what is already there: link(2) for
files, If-None-Match for objects. Keys are taken as they are: spaces, unicode, "+", "%" and "#" need no quoting.
AWS_PROFILE, AWS_ENDPOINT_URL and the other AWS_* variables choose the account and the store. boto3 is imported when the
first object is touched, so that login nodes do without it. One long file, because it is the only door to boto3.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import os
import random
import re
import shutil
import socket
import stat as modes
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

MIB = 1024**2
READ_BLOCK = 4 * MIB  # one ranged GET of an open object
READ_AHEAD = 2  # blocks fetched before they are asked for, when reading on in order
READ_CACHE = 8  # blocks kept per open object
MULTIPART_ABOVE = 64 * MIB  # larger objects go up in parts
PART = 32 * MIB  # S3 takes at most 10,000 parts: objects above 312 GiB get larger ones
UPLOADS = 4  # parts in flight
TRIES = 6  # on top of botocore's own, for what it gives up on: cut downloads, uploads to start afresh
STALE_LOCK = 120.0  # seconds; a lock is held for one rename
WRITER = "hpc-writer"  # metadata key that tells our own object from another writer's


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


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    """join("s3://bucket/run/", "clips", "000001.tar") -> "s3://bucket/run/clips/000001.tar"; paths alike."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def listing(folder: str) -> Iterator[Entry]:
    """Every file below a folder (or the one file or object of that very name), in the order of its path's characters.

    Hidden names (leading dot, at any depth) and S3's zero-length "folder" keys are left out. Links are followed, each
    linked folder once. A folder that does not exist lists as empty, as a prefix without objects does on S3.
    """
    if is_s3(folder):
        yield from _s3_listing(folder)
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
        try:
            head = _s3(uri, "head_object")
        except FileNotFoundError:
            return None
        return Entry(uri, head["ContentLength"], head["ETag"].strip('"'))
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
        entry = stat(uri)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", uri)
        if etag is not None and entry.etag != etag:
            raise Changed(uri, etag, entry.etag)
        return io.BufferedReader(_S3File(entry), 64 * 1024)
    with _explained(uri):
        file = _path(uri).open("rb")
        if etag is not None and (found := _etag(os.fstat(file.fileno()))) != etag:
            file.close()
            raise Changed(uri, etag, found)
    return file


def read(uri: str, start: int = 0, end: int | None = None, etag: str | None = None) -> bytes:
    """The bytes [start, end), less where the file ends before. Raises FileNotFoundError, and Changed like `open`."""
    if is_s3(uri):
        return _s3_read(uri, start, end, etag)
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
    return _s3_put(uri, source, new=True) if is_s3(uri) else _local_put(uri, source, new=True)


def put(uri: str, source: Path | bytes) -> None:
    """Write a file, or bytes, in place of what is there: readers see the old object or the new, never a mixture."""
    if is_s3(uri):
        _s3_put(uri, source, new=False)
    else:
        _local_put(uri, source, new=False)


def delete(uri: str) -> None:
    """Delete one file or object; fine if there is none."""
    if is_s3(uri):
        _s3(uri, "delete_object")
    else:
        with _explained(uri):
            _path(uri).unlink(missing_ok=True)


def sweep(folder: str, older_than_seconds: float) -> int:
    """Remove what killed writers left below a folder: temporary files, unfinished uploads. Returns how many."""
    limit, swept = time.time() - older_than_seconds, 0
    if is_s3(folder):
        pages = _s3_pages(folder, "list_multipart_uploads", Prefix=_folder_prefix(folder))
        for upload in (upload for page in pages for upload in page.get("Uploads", [])):
            if upload["Initiated"].timestamp() <= limit:
                swept += _abort(_sibling(folder, upload["Key"]), upload["UploadId"])
        return swept
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


def _writer() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{random.SystemRandom().getrandbits(48):012x}"


def _local_put(uri: str, source: Path | bytes, new: bool) -> bool:
    target = _path(uri)
    with _explained(uri):
        if new and target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.parent / f".tmp-{_writer()}"
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


# S3

_clients: dict[object, Any] = {}
_clients_lock = threading.Lock()
_unconditional: set[str] = set()  # endpoints that refuse conditional writes


def _split(uri: str) -> tuple[str, str, str]:
    """s3://profile@bucket/key -> (profile, bucket, key)."""
    match = re.fullmatch(r"s3://(?:([^/]*)@)?([^/@]+)(?:/(.*))?", uri, re.DOTALL)
    if not match:
        raise StorageError(uri, "not an S3 address", "Write s3://bucket/key or s3://profile@bucket/key")
    return match[1] or "", match[2], match[3] or ""


def _sibling(uri: str, key: str) -> str:
    profile, bucket, _ = _split(uri)
    return f"s3://{profile}@{bucket}/{key}" if profile else f"s3://{bucket}/{key}"


def _folder_prefix(uri: str) -> str:
    key = _split(uri)[2].rstrip("/")
    return key + "/" if key else ""


def _client(uri: str) -> Any:
    """One client per process, profile and AWS_* environment; clients are thread-safe, making one is not."""
    try:
        import boto3
        import botocore.config
    except ImportError as error:
        raise StorageError(uri, "s3:// needs boto3, which is not installed", "pip install 'hpc[curate]'") from error
    profile = _split(uri)[0]
    key = (os.getpid(), profile, *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _clients_lock:
        if key not in _clients:
            config = botocore.config.Config(
                retries={"mode": "adaptive", "max_attempts": 10},
                connect_timeout=10,
                read_timeout=60,
                tcp_keepalive=True,
                max_pool_connections=32,
                # Many stores that speak S3 refuse the newer checksum headers; uploads carry Content-MD5 instead.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            _clients[key] = boto3.Session(profile_name=profile or None).client("s3", config=config)
        return _clients[key]


def _s3(uri: str, operation: str, **arguments: Any) -> Any:
    """One request, with botocore's retries; errors as StorageError or FileNotFoundError."""
    with _s3_explained(uri):
        _, bucket, key = _split(uri)
        return getattr(_client(uri), operation)(Bucket=bucket, Key=key, **arguments)


def _s3_pages(uri: str, operation: str, **arguments: Any) -> Iterator[Any]:
    with _s3_explained(uri):
        yield from _client(uri).get_paginator(operation).paginate(Bucket=_split(uri)[1], **arguments)


CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a profile of ~/.aws in the address "
    "(s3://profile@bucket/key); `aws sts get-caller-identity` shows who you are"
)


@contextlib.contextmanager
def _s3_explained(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("botocore.", "boto3.")):
            raise
        profile, bucket, _ = _split(uri)
        name, answer = type(error).__name__, getattr(error, "response", None) or {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = answer.get("Error", {}).get("Code") or name
        code = {"403": "AccessDenied", "404": "NoSuchKey", "412": "PreconditionFailed"}.get(code, code)
        what, do = f"{code}: {answer.get('Error', {}).get('Message') or error}", "See the error above it in the log"
        if code in ("NoSuchKey", "NotFound"):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from error
        if code == "NoSuchBucket":
            what, do = f"there is no bucket {bucket!r}", "Make the bucket, or check its name and AWS_ENDPOINT_URL"
        elif name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError") or "Token" in name:
            what, do = f"no usable credentials ({error})", CREDENTIALS
        elif name == "ProfileNotFound":
            what, do = f"no AWS profile {profile or os.environ.get('AWS_PROFILE')!r}", CREDENTIALS
        elif code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            what, do = f"the credentials are wrong or out of date ({code})", CREDENTIALS
        elif status in (401, 403):
            what = f"permission denied ({code})"
            do = (
                f"The credentials are wrong, or may not do this in bucket {bucket!r} (without the right to list, this "
                f"is also the answer for a key that does not exist). {CREDENTIALS}"
            )
        elif name in ("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"):
            what = f"the store cannot be reached ({error})"
            do = "Check AWS_ENDPOINT_URL, and that compute nodes may reach it"
        raise StorageError(uri, what, do, code) from error


def _s3_listing(folder: str) -> Iterator[Entry]:
    prefix, empty = _folder_prefix(folder), True
    for page in _s3_pages(folder, "list_objects_v2", Prefix=prefix):
        for item in page.get("Contents", []):
            empty, key = False, item["Key"]
            if not key.endswith("/") and not re.search(r"(^|/)\.", key[len(prefix) :]):
                yield Entry(_sibling(folder, key), item["Size"], item["ETag"].strip('"'))
    if empty and prefix and not folder.endswith("/") and (entry := stat(folder)):
        yield entry


def _s3_read(uri: str, start: int, end: int | None, etag: str | None) -> bytes:
    """A ranged GET that goes on where it was cut. All bytes are of one version of the object."""
    data, tries = bytearray(), 0
    while end is None or start + len(data) < end:
        begin = start + len(data)
        try:
            span = f"bytes={begin}-" + ("" if end is None else str(end - 1))
            answer = _s3(uri, "get_object", Range=span, **({} if etag is None else {"IfMatch": f'"{etag}"'}))
            found = answer["ETag"].strip('"')
            if etag is not None and found != etag:  # some stores ignore If-Match
                raise Changed(uri, etag, found)
            etag = found
            with _s3_explained(uri):
                for chunk in answer["Body"].iter_chunks(MIB):
                    data += chunk
            break
        except StorageError as error:
            if error.code == "InvalidRange":  # nothing at or after `begin`
                break
            if error.code == "PreconditionFailed":
                raise Changed(uri, etag or "") from error
            if error.code not in ("ResponseStreamingError", "IncompleteReadError", "ReadTimeoutError"):
                raise
            tries = tries + 1 if start + len(data) == begin else 1
            if tries == TRIES:
                raise
            _pause(tries)
    return bytes(data)


def _pause(tries: int) -> None:
    time.sleep(random.uniform(0.2, 1.0) * min(0.1 * 2**tries, 10))


class _S3File(io.RawIOBase):
    """One version of an object. Blocks come in the background when they are read in order; the last few are kept."""

    def __init__(self, entry: Entry) -> None:
        self._entry, self._at = entry, 0
        self._last, self._ahead = -1, 0
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(READ_AHEAD + 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._entry.uri}: cannot seek to {base + offset}, before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._entry.size:
            return 0
        number, skip = divmod(self._at, READ_BLOCK)
        piece = self._block(number)[skip : skip + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._blocks.clear()
        super().close()

    def _block(self, number: int) -> bytes:
        if number != self._last:  # a probe of the first bytes fetches one block; reading on in order fetches ahead
            self._ahead = READ_AHEAD if 0 < number == self._last + 1 else 0
            self._last = number
        count = -(-self._entry.size // READ_BLOCK)
        for wanted in range(number, min(number + self._ahead + 1, count)):
            if wanted not in self._blocks:
                self._blocks[wanted] = self._pool.submit(self._fetch, wanted)
        self._blocks.move_to_end(number)
        while len(self._blocks) > READ_CACHE:
            self._blocks.popitem(last=False)[1].cancel()
        try:
            return self._blocks[number].result()
        except BaseException:
            del self._blocks[number]  # the next read asks again
            raise

    def _fetch(self, number: int) -> bytes:
        start = number * READ_BLOCK
        end = min(start + READ_BLOCK, self._entry.size)
        data = _s3_read(self._entry.uri, start, end, self._entry.etag)
        if len(data) != end - start:
            raise Changed(self._entry.uri, self._entry.etag)
        return data


def _s3_put(uri: str, source: Path | bytes, new: bool) -> bool:
    """Upload, starting afresh where the store asks for it; the writer's name on the object settles a lost reply."""
    if new and _is_there(uri):  # spares the upload, and on stores without conditional writes nothing else looks
        return False
    with _s3_explained(uri):
        endpoint = _client(uri).meta.endpoint_url
    writer, refused = _writer(), False
    for tries in range(1, TRIES + 1):
        condition = {"IfNoneMatch": "*"} if new and not refused and endpoint not in _unconditional else {}
        try:
            _upload(uri, source, {WRITER: writer}, condition)
        except StorageError as error:
            if condition and error.code in ("NotImplemented", "InvalidArgument", "InvalidRequest", "501"):
                refused = True
            elif error.code == "PreconditionFailed":
                owner = _written_by(uri)
                if owner is not None:
                    return owner == writer
            elif error.code not in ("ConditionalRequestConflict", "OperationAborted", "NoSuchUpload", "InternalError"):
                raise
            if tries == TRIES:
                raise
            _pause(tries)
        else:
            if refused:
                _unconditional.add(endpoint)
            return True
    raise AssertionError


def _is_there(uri: str) -> bool:
    try:
        return stat(uri) is not None
    except StorageError as error:
        if error.code != "AccessDenied":  # what S3 says of a missing key to those who may not list
            raise
        return False


def _written_by(uri: str) -> str | None:
    """Who wrote the object: "" for strangers, None where there is no object."""
    try:
        metadata = _s3(uri, "head_object")["Metadata"]
    except FileNotFoundError:
        return None
    return next((value for name, value in metadata.items() if name.lower() == WRITER), "")


def _upload(uri: str, source: Path | bytes, metadata: dict[str, str], condition: dict[str, str]) -> None:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size

    def part(start: int, length: int) -> dict[str, Any]:
        if isinstance(source, bytes):
            body = source[start : start + length]
        else:
            with source.open("rb") as file:
                file.seek(start)
                body = file.read(length)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        return {"Body": body, "ContentMD5": base64.b64encode(md5).decode()}

    if size <= MULTIPART_ABOVE:
        _s3(uri, "put_object", Metadata=metadata, **part(0, size), **condition)
        return
    length = max(PART, -(-size // 10_000))
    upload = {"UploadId": _s3(uri, "create_multipart_upload", Metadata=metadata)["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        answer = _s3(uri, "upload_part", PartNumber=number, **part((number - 1) * length, length), **upload)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(UPLOADS) as pool:
            try:
                parts = list(pool.map(send, range(1, -(-size // length) + 1)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # no part may arrive after the abort
                raise
        _s3(uri, "complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload, **condition)
    except BaseException:
        with contextlib.suppress(StorageError):  # the error that brought us here says more; sweep() comes later
            _abort(uri, upload["UploadId"])
        raise


def _abort(uri: str, upload: str) -> bool:
    """False if the upload was finished or aborted before."""
    try:
        _s3(uri, "abort_multipart_upload", UploadId=upload)
    except FileNotFoundError:
        return False
    except StorageError as error:
        if error.code != "NoSuchUpload":
            raise
        return False
    return True

"""The S3 side of hpc.data.storage, function by function: that module's docstrings are the contract. Only here is boto3.

Works with AWS and with the stores that speak its language: conditional writes where the store has them, cut downloads
resumed, every byte of an open object from one version of it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from hpc.data.storage import MIB, Changed, Entry, StorageError, writer_name

READ_BLOCK = 4 * MIB  # one ranged GET of an open object
READ_AHEAD = 2  # blocks fetched before they are asked for, when reading on in order
READ_CACHE = 8  # blocks kept per open object
MULTIPART_ABOVE = 64 * MIB  # larger objects go up in parts
PART = 32 * MIB  # S3 takes at most 10,000 parts: objects above 312 GiB get larger ones
UPLOADS = 4  # parts in flight
TRIES = 6  # on top of botocore's own, for what it gives up on: cut downloads, uploads to start afresh
WRITER = "hpc-writer"  # metadata key that tells our own object from another writer's

_clients: dict[object, Any] = {}
_clients_lock = threading.Lock()
_unconditional: set[str] = set()  # endpoints that refuse conditional writes


def split(uri: str) -> tuple[str, str, str]:
    """s3://profile@bucket/key -> (profile, bucket, key)."""
    match = re.fullmatch(r"s3://(?:([^/]*)@)?([^/@]+)(?:/(.*))?", uri, re.DOTALL)
    if not match:
        raise StorageError(uri, "not an S3 address", "Write s3://bucket/key or s3://profile@bucket/key")
    return match[1] or "", match[2], match[3] or ""


def sibling(uri: str, key: str) -> str:
    profile, bucket, _ = split(uri)
    return f"s3://{profile}@{bucket}/{key}" if profile else f"s3://{bucket}/{key}"


def folder_prefix(uri: str) -> str:
    key = split(uri)[2].rstrip("/")
    return key + "/" if key else ""


def client(uri: str) -> Any:
    """One client per process, profile and AWS_* environment; clients are thread-safe, making one is not."""
    try:
        import boto3
        import botocore.config
    except ImportError as error:
        raise StorageError(uri, "s3:// needs boto3, which is not installed", "pip install 'hpc[curate]'") from error
    profile = split(uri)[0]
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


def request(uri: str, operation: str, **arguments: Any) -> Any:
    """One request, with botocore's retries; errors as StorageError or FileNotFoundError."""
    with explained(uri):
        _, bucket, key = split(uri)
        return getattr(client(uri), operation)(Bucket=bucket, Key=key, **arguments)


def pages(uri: str, operation: str, **arguments: Any) -> Iterator[Any]:
    with explained(uri):
        yield from client(uri).get_paginator(operation).paginate(Bucket=split(uri)[1], **arguments)


CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a profile of ~/.aws in the address "
    "(s3://profile@bucket/key); `aws sts get-caller-identity` shows who you are"
)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("botocore.", "boto3.")):
            raise
        profile, bucket, _ = split(uri)
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


def stat(uri: str) -> Entry | None:
    try:
        head = request(uri, "head_object")
    except FileNotFoundError:
        return None
    return Entry(uri, head["ContentLength"], head["ETag"].strip('"'))


def open(uri: str, etag: str | None) -> BinaryIO:
    entry = stat(uri)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", uri)
    if etag is not None and entry.etag != etag:
        raise Changed(uri, etag, entry.etag)
    return io.BufferedReader(File(entry), 64 * 1024)


def listing(folder: str) -> Iterator[Entry]:
    prefix, empty = folder_prefix(folder), True
    for page in pages(folder, "list_objects_v2", Prefix=prefix):
        for item in page.get("Contents", []):
            empty, key = False, item["Key"]
            if not key.endswith("/") and not re.search(r"(^|/)\.", key[len(prefix) :]):
                yield Entry(sibling(folder, key), item["Size"], item["ETag"].strip('"'))
    if empty and prefix and not folder.endswith("/") and (entry := stat(folder)):
        yield entry


def read(uri: str, start: int, end: int | None, etag: str | None) -> bytes:
    """A ranged GET that goes on where it was cut. All bytes are of one version of the object."""
    data, tries = bytearray(), 0
    while end is None or start + len(data) < end:
        begin = start + len(data)
        try:
            span = f"bytes={begin}-" + ("" if end is None else str(end - 1))
            answer = request(uri, "get_object", Range=span, **({} if etag is None else {"IfMatch": f'"{etag}"'}))
            found = answer["ETag"].strip('"')
            if etag is not None and found != etag:  # some stores ignore If-Match
                raise Changed(uri, etag, found)
            etag = found
            with explained(uri):
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


class File(io.RawIOBase):
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
        data = read(self._entry.uri, start, end, self._entry.etag)
        if len(data) != end - start:
            raise Changed(self._entry.uri, self._entry.etag)
        return data


def put(uri: str, source: Path | bytes, new: bool) -> bool:
    """Upload, starting afresh where the store asks for it; the writer's name on the object settles a lost reply."""
    if new and _is_there(uri):  # spares the upload, and on stores without conditional writes nothing else looks
        return False
    with explained(uri):
        endpoint = client(uri).meta.endpoint_url
    writer, refused = writer_name(), False
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
        metadata = request(uri, "head_object")["Metadata"]
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
        request(uri, "put_object", Metadata=metadata, **part(0, size), **condition)
        return
    length = max(PART, -(-size // 10_000))
    upload = {"UploadId": request(uri, "create_multipart_upload", Metadata=metadata)["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        answer = request(uri, "upload_part", PartNumber=number, **part((number - 1) * length, length), **upload)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(UPLOADS) as pool:
            try:
                parts = list(pool.map(send, range(1, -(-size // length) + 1)))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # no part may arrive after the abort
                raise
        request(uri, "complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload, **condition)
    except BaseException:
        with suppress(StorageError):  # the error that brought us here says more; sweep() comes later
            abort(uri, upload["UploadId"])
        raise


def abort(uri: str, upload: str) -> bool:
    """False if the upload was finished or aborted before."""
    try:
        request(uri, "abort_multipart_upload", UploadId=upload)
    except FileNotFoundError:
        return False
    except StorageError as error:
        if error.code != "NoSuchUpload":
            raise
        return False
    return True


def delete(uri: str) -> None:
    request(uri, "delete_object")


def sweep(folder: str, before: float) -> int:
    swept = 0
    for page in pages(folder, "list_multipart_uploads", Prefix=folder_prefix(folder)):
        for upload in page.get("Uploads", []):
            if upload["Initiated"].timestamp() <= before:
                swept += abort(sibling(folder, upload["Key"]), upload["UploadId"])
    return swept

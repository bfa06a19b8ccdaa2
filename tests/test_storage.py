from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3

from hpc.data import s3 as backend
from hpc.data import storage
from hpc.data.storage import Changed, StorageError

NAMES = ["plain.mp4", "with space.mp4", "ünï.mp4", "-rf", "a+b%20c#d?e=f&g.mp4", "it's \"quoted\".mp4", "a/b/c"]


@pytest.fixture(scope="module")
def moto() -> Iterator[s3.Server]:
    with s3.moto() as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[s3.Server], None]:
    def use(server: s3.Server) -> None:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, use: Callable[[s3.Server], None]) -> s3.Server:
    server = request.getfixturevalue(request.param)
    use(server)
    return server


@pytest.fixture(params=["local", "moto", "rclone"])
def base(request: pytest.FixtureRequest, use: Callable[[s3.Server], None], tmp_path: Path) -> str:
    """An empty folder on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "store")
    use(request.getfixturevalue(request.param))
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MULTIPART_ABOVE", 100_000)
    monkeypatch.setattr(backend, "PART", 30_000)
    monkeypatch.setattr(backend, "READ_BLOCK", 20_000)


DATA = random.Random(0).randbytes(250_000)


# One shape for files and objects


@pytest.mark.parametrize("name", NAMES)
def test_whatever_its_name_an_object_comes_back(base: str, name: str, tmp_path: Path) -> None:
    uri = storage.join(base, name)
    assert storage.stat(uri) is None
    (tmp_path / "source").write_bytes(b"0123456789")
    assert storage.put_new(uri, tmp_path / "source") is True
    assert storage.put_new(uri, b"other") is False
    assert storage.read(uri) == b"0123456789"
    assert [storage.read(uri, 2, 5), storage.read(uri, 8), storage.read(uri, 8, 99), storage.read(uri, 10, 12)] == [
        b"234",
        b"89",
        b"89",
        b"",
    ]
    assert storage.read(uri, 3, 3) == b""
    entry = storage.stat(uri)
    assert entry and (entry.uri, entry.size) == (uri, 10)
    assert list(storage.listing(base)) == [entry] == list(storage.listing(base + "/"))
    assert list(storage.listing(uri)) == [entry]
    assert storage.sha256(uri) == (hashlib.sha256(b"0123456789").hexdigest(), 10)
    time.sleep(0.01)  # file times tick
    storage.put(uri, b"other")
    assert storage.read(uri) == b"other"
    changed = storage.stat(uri)
    assert changed and changed.etag != entry.etag
    with pytest.raises(Changed, match="it changed"):
        storage.read(uri, etag=entry.etag)
    with pytest.raises(Changed, match="it changed"):
        storage.open(uri, etag=entry.etag)
    assert storage.open(uri, etag=changed.etag).read() == storage.read(uri, etag=changed.etag) == b"other"
    storage.delete(uri)
    storage.delete(uri)
    assert storage.stat(uri) is None and not list(storage.listing(base))


def test_what_is_missing_is_said(base: str) -> None:
    assert list(storage.listing(base)) == []
    for call in (storage.open, storage.read, storage.sha256):
        with pytest.raises(FileNotFoundError, match=r"nope\.mp4"):
            call(storage.join(base, "nope.mp4"))


def test_empty_objects(base: str) -> None:
    uri = storage.join(base, "empty")
    assert storage.put_new(uri, b"") and storage.read(uri) == b"" == storage.open(uri).read()
    assert not storage.put_new(uri, b"x")
    entry = storage.stat(uri)
    assert entry and entry.size == 0


def test_listing_is_in_order_and_leaves_out_what_is_hidden(base: str, request: pytest.FixtureRequest) -> None:
    names = ["a-1/x", "a/b/c", "a/x", "a.txt", "b/.hidden/x", "b/.tmp-host-1-ff", ".x", "b/y", "ö"]
    for name in names:
        storage.put(storage.join(base, name), b"1")
    if "moto" in request.node.name:  # rclone makes a file of it
        storage.put(base + "/b/folder/", b"")  # what consoles make for "new folder"
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    assert [entry.uri for entry in storage.listing(base)] == [storage.join(base, name) for name in sorted(shown)]
    assert [entry.uri for entry in storage.listing(storage.join(base, "a"))] == [
        storage.join(base, "a/b/c"),  # and not a-1 or a.txt, which begin alike
        storage.join(base, "a/x"),
    ]


def test_open_seeks_like_a_file(base: str, small_parts: None) -> None:
    uri = storage.join(base, "big")
    storage.put(uri, DATA)
    with storage.open(uri) as file:
        assert file.seekable() and file.read() == DATA and file.read() == b""
        chance = random.Random(1)
        for _ in range(60):
            at, size = chance.randrange(len(DATA) + 10), chance.randrange(50_000)
            assert file.seek(at) == at == file.tell()
            assert file.read(size) == DATA[at : at + size]
        assert file.seek(-10, os.SEEK_END) == len(DATA) - 10
        file.seek(5, os.SEEK_CUR)
        assert file.read() == DATA[-5:]
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)


def test_large_objects_go_up_in_parts(base: str, small_parts: None, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    for uri, source in ((storage.join(base, "a"), tmp_path / "source"), (storage.join(base, "b"), DATA)):
        assert storage.put_new(uri, source) and not storage.put_new(uri, source)
        assert storage.read(uri) == DATA
        storage.put(uri, DATA[::-1])
        assert storage.sha256(uri) == (hashlib.sha256(DATA[::-1]).hexdigest(), len(DATA))
    assert storage.sweep(base, 0) == 0


def test_join() -> None:
    assert storage.join("s3://b/x/", "y", "/z.tar") == "s3://b/x/y/z.tar"
    assert storage.join("s3://b", "y") == "s3://b/y"
    assert storage.join("/", "y") == "/y"


def test_other_schemes_are_refused() -> None:
    for uri in ("gs://bucket/x", "https://host/x"):
        with pytest.raises(StorageError, match="not supported"):
            storage.read(uri)
    for uri in ("s3://", "s3:///x", "s3://a@/x"):
        with pytest.raises(StorageError, match="not an S3 address"):
            storage.read(uri)


def test_errors_survive_pickling() -> None:
    for error in (StorageError("u", "what", "do", "code"), Changed("u", "a", "b")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.code) == (type(error), str(error), error.code)


def test_the_module_needs_no_boto3_until_s3_is_used() -> None:
    code = """
        import sys
        sys.modules["boto3"] = None  # as if it were not installed
        from hpc.data import storage
        assert not {"botocore", "numpy", "torch"} & sys.modules.keys()
        assert storage.read(sys.argv[1], 0, 4) == b"from"
        try:
            storage.read("s3://bucket/key")
        except storage.StorageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), __file__], capture_output=True, text=True)
    assert "pip install 'hpc[curate]'" in done.stdout, done


# Local files


def test_listing_is_fast(tmp_path: Path) -> None:
    """At the pace of 100,000 files in two seconds."""
    for folder in range(10):
        (tmp_path / f"{folder}").mkdir()
        for i in range(1000):
            os.close(os.open(f"{tmp_path}/{folder}/{i:04}.mp4", os.O_CREAT))
    took = []
    for _ in range(3):
        start = time.process_time()
        uris = [entry.uri for entry in storage.listing(str(tmp_path))]
        took.append(time.process_time() - start)
    assert len(uris) == 10_000 and uris == sorted(uris)
    assert min(took) < 0.2


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/x").write_bytes(b"1")
    (tmp_path / "input").mkdir()
    (tmp_path / "input/folder").symlink_to(tmp_path / "data")
    (tmp_path / "input/file").symlink_to(tmp_path / "data/deep/x")
    (tmp_path / "input/gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "input/circle").symlink_to(tmp_path / "input")
    (tmp_path / "data/up").symlink_to(tmp_path / "data")
    os.mkfifo(tmp_path / "input/pipe")
    found = [str(Path(entry.uri).relative_to(tmp_path)) for entry in storage.listing(str(tmp_path / "input"))]
    assert found == ["input/file", "input/folder/deep/x"]


def test_a_local_etag_is_time_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    os.utime(tmp_path / "a", ns=(0, 0x1234))
    entry = storage.stat(str(tmp_path / "a"))
    assert entry == storage.Entry(str(tmp_path / "a"), 3, "1234-3")
    assert storage.stat(str(tmp_path)) is None  # folders are no objects, there and on S3


def test_names_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.mp4", os.O_CREAT))
    with pytest.raises(StorageError, match=r"udcff\.mp4.*not UTF-8.*Rename"):
        list(storage.listing(str(tmp_path)))


def test_permission_problems_are_named(tmp_path: Path) -> None:
    """As another user than root, in a child process."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/x").write_bytes(b"1")
    (tmp_path / "locked").chmod(0o555)
    tmp_path.chmod(0o755)
    code = """
        import os, sys
        from hpc.data import storage
        if os.getuid() == 0:
            os.setuid(65534)
        for call in (lambda u: storage.put_new(u + "/new", b""), lambda u: storage.delete(u + "/x")):
            try:
                call(sys.argv[1])
            except storage.StorageError as error:
                print(error.code, error)
    """
    with contextlib.ExitStack() as stack:
        for parent in (tmp_path.parent, tmp_path.parent.parent):  # pytest's own folders are private
            stack.callback(parent.chmod, parent.stat().st_mode)
            parent.chmod(0o755)
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "locked")]
        done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("EACCES" in x and "Permission denied" in x and "ls -ld" in x for x in lines), done


def test_a_full_disk_leaves_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*free some space") as error:
        storage.put_new(str(tmp_path / "a"), b"x")
    assert error.value.code == "ENOSPC" and not list(tmp_path.iterdir())


NO_LINKS = "os.link = lambda *_: (_ for _ in ()).throw(PermissionError(1, 'no links here'))"
WRITER = """
import os, sys
from hpc.data import s3, storage
{setup}
s3.MULTIPART_ABOVE, s3.PART = 100_000, 30_000
storage.stat(sys.argv[1])  # imports done, connected
print("ready", flush=True)
for line in sys.stdin:
    uri, size = line.split()
    print(int(storage.put_new(uri, sys.argv[2].encode() * int(size))), flush=True)
"""
SIZES = [1000, 250_000] * 4


def live_writers(base: str, setup: str = "") -> list[int]:
    """Three processes publish the same shards at the same moments: how many got True, for each shard."""
    command = [sys.executable, "-c", WRITER.format(setup=setup), f"{base}/0"]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen([*command, me], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
            for me in "abc"
        ]
        stack.callback(lambda: [child.kill() for child in children])
        replies = [[child.stdout.readline() for child in children]]  # type: ignore[union-attr]
        for shard, size in enumerate(SIZES):
            for child in children:
                child.stdin.write(f"{base}/{shard} {size}\n")  # type: ignore[union-attr]
            replies.append([child.stdout.readline() for child in children])  # type: ignore[union-attr]
    assert replies.pop(0) == ["ready\n"] * 3
    for shard, (size, reply) in enumerate(zip(SIZES, replies, strict=True)):
        data = storage.read(f"{base}/{shard}")
        assert data in (b"a" * size, b"b" * size, b"c" * size), "torn"
        if reply.count("1\n") == 1:
            assert data[:1].decode() == "abc"[reply.index("1\n")], "the winner's"
    return [reply.count("1\n") for reply in replies]


@pytest.mark.parametrize("setup", ["", NO_LINKS], ids=["link", "lock"])
def test_of_live_writers_of_a_file_one_wins(tmp_path: Path, setup: str) -> None:
    assert live_writers(str(tmp_path), setup) == [1] * len(SIZES)
    assert len(list(tmp_path.iterdir())) == len(SIZES), "and nothing is left over"


def test_a_lock_whose_owner_died_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    lock = tmp_path / ".tmp-lock-x"
    lock.touch()
    threading.Timer(0.3, lambda: os.utime(lock, (0, 0))).start()
    start = time.monotonic()
    assert storage.put_new(str(tmp_path / "x"), b"1")
    assert time.monotonic() - start > 0.2, "a fresh lock is respected"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_whose_reply_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def nfs(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "retransmitted", str(target))

    monkeypatch.setattr(os, "link", nfs)
    assert storage.put_new(str(tmp_path / "x"), b"1") is True


def test_killed_writers_leave_nothing_or_everything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20_000_000))
    digest = storage.sha256(str(source))
    times = [time.monotonic()]
    for i in range(4):
        storage.put_new(str(tmp_path / f"timed/{i}"), source)
        times.append(time.monotonic())
    took = min(after - before for before, after in itertools.pairwise(times))
    chance, whole, left = random.Random(0), 0, 0
    (tmp_path / "store").mkdir()
    for i in range(30):
        target = tmp_path / f"store/{i}.tar"
        child = os.fork()
        if child == 0:
            try:
                storage.put_new(str(target), source)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            whole += 1
            assert storage.sha256(str(target)) == digest
            target.unlink()
        left += len(list(target.parent.glob(".tmp-*")))
        assert storage.sweep(str(tmp_path), 3600) == 0, "it may be a live writer's"
        storage.sweep(str(tmp_path), 0)
        assert not list(target.parent.iterdir())
    assert left > 2, f"{left} of 30 were killed while writing, {whole} after"


# S3


def test_profiles_choose_the_account(
    rclone: s3.Server, tmp_path: Path, use: Callable[[s3.Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(rclone)
    storage.put("s3://bucket/profiles/x", b"1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        "[mine]\naws_access_key_id = KEY\naws_secret_access_key = SECRET\n"
        "[wrong]\naws_access_key_id = KEY\naws_secret_access_key = x\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert storage.read("s3://mine@bucket/profiles/x") == b"1"
    assert [entry.uri for entry in storage.listing("s3://mine@bucket/profiles")] == ["s3://mine@bucket/profiles/x"]
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert storage.read("s3://bucket/profiles/x") == b"1"
    monkeypatch.delenv("AWS_PROFILE")
    for uri, what in (
        ("s3://bucket/profiles/x", "no usable credentials"),
        ("s3://nobody@bucket/profiles/x", "no AWS profile 'nobody'"),
        ("s3://wrong@bucket/profiles/x", "the credentials are wrong"),
    ):
        for call in (storage.read, lambda uri: list(storage.listing(uri)), lambda uri: storage.put(uri, b"")):
            with pytest.raises(StorageError, match=f"{what}.*AWS_ACCESS_KEY_ID"):
                call(uri)
        with pytest.raises(StorageError, match=f"({what}|permission denied).*AWS_ACCESS_KEY_ID"):
            storage.put_new(uri, b"")
    assert storage.read("s3://mine@bucket/profiles/x") == b"1"


def test_a_missing_bucket_and_an_unreachable_store_are_named(
    server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in (storage.read, lambda uri: list(storage.listing(uri)), lambda uri: storage.put_new(uri, b"")):
        with pytest.raises(StorageError, match="there is no bucket 'nowhere'"):
            call("s3://nowhere/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        storage.read("s3://bucket/x")


def test_listing_pages(moto: s3.Server, use: Callable[[s3.Server], None], tmp_path: Path) -> None:
    uris = [f"s3://bucket/pages/{i % 7}/{i:04} ü" for i in range(2500)]
    use(moto)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: storage.put(uri, b"x"), uris[:1001]))
    assert [entry.uri for entry in storage.listing("s3://bucket/pages")] == sorted(uris[:1001])
    for uri in uris:
        path = tmp_path / uri.removeprefix("s3://")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with s3.rclone(tmp_path) as rclone:
        use(rclone)
        assert [entry.uri for entry in storage.listing("s3://bucket/pages/")] == sorted(uris)


def test_an_object_that_changes_while_it_is_read(server: s3.Server, small_parts: None) -> None:
    uri = "s3://bucket/changing"
    storage.put(uri, DATA)
    with storage.open(uri) as file:
        assert file.read(10) == DATA[:10]
        storage.put(uri, DATA[::-1])
        file.seek(200_000)
        with pytest.raises(Changed, match=r"s3://bucket/changing: it changed while in use"):
            file.read(10)
    with storage.open(uri) as file:
        assert file.read(10) == DATA[::-1][:10]
        storage.put(uri, b"short")
        file.seek(200_000)
        with pytest.raises(Changed):
            file.read(10)
    with storage.open(uri) as file:
        storage.delete(uri)
        with pytest.raises(FileNotFoundError):
            file.read()


def test_of_live_writers_of_an_object_one_wins(moto: s3.Server, use: Callable[[s3.Server], None]) -> None:
    use(moto)
    assert live_writers("s3://bucket/writers") == [1] * len(SIZES)
    assert storage.sweep("s3://bucket/", 0) == 0, "losers abort their uploads"


def test_without_conditional_writes_no_object_is_torn(rclone: s3.Server, use: Callable[[s3.Server], None]) -> None:
    use(rclone)
    assert all(1 <= winners <= 3 for winners in live_writers("s3://bucket/writers"))


def test_stores_that_refuse_conditional_writes(
    server: s3.Server, use: Callable[[s3.Server], None], small_parts: None
) -> None:
    with s3.faulty(server, seed=0, rate=0, refuse_conditions=True) as proxy:
        use(proxy)
        for i, data in enumerate((b"small", DATA, b"small", DATA)):
            assert storage.put_new(f"s3://bucket/refused/{i}", data) is True
            assert storage.put_new(f"s3://bucket/refused/{i}", b"") is False
            assert storage.read(f"s3://bucket/refused/{i}") == data
        assert proxy.faults["501"] == 1, "asked once"
        assert storage.sweep("s3://bucket/refused", 0) == 0


def test_on_a_failing_store_everything_succeeds_or_is_absent(
    server: s3.Server, use: Callable[[s3.Server], None], small_parts: None
) -> None:
    with s3.faulty(server, seed=3, rate=0.2) as proxy:
        use(proxy)
        for i in range(2):
            uri = f"s3://bucket/failing/{i}"
            assert storage.put_new(uri, DATA) is True, "ours, though the reply may have been lost"
            assert storage.put_new(uri, b"") is False
            assert storage.read(uri) == DATA
            assert storage.open(uri).read() == DATA
            storage.put(uri, DATA[::-1])
            assert storage.sha256(uri)[0] == hashlib.sha256(DATA[::-1]).hexdigest()
            assert len(list(storage.listing("s3://bucket/failing"))) == i + 1
    use(server)
    assert len(proxy.faults) >= 4 and proxy.faults.total() > 8, proxy.faults
    storage.sweep("s3://bucket/failing", 0)  # creations of uploads whose reply was lost
    assert [storage.read(f"s3://bucket/failing/{i}") == DATA[::-1] for i in range(2)] == [True] * 2


def test_a_write_whose_answer_is_lost_is_known_as_ours(
    server: s3.Server, use: Callable[[s3.Server], None], small_parts: None
) -> None:
    parts = -(-len(DATA) // backend.PART)
    requests = {"put": (b"small", ["head", "put"]), "parts": (DATA, ["head", "create", *["part"] * parts, "complete"])}
    for name, (data, steps) in requests.items():
        first = ["" for _ in steps[:-1]] + ["unanswered"]
        with s3.faulty(server, seed=0, rate=0, first=first) as proxy:
            use(proxy)
            assert storage.put_new(f"s3://bucket/lost/{name}", data) is True
            assert proxy.faults == {"unanswered": 1}
            assert storage.put_new(f"s3://bucket/lost/{name}", data) is False
            assert storage.read(f"s3://bucket/lost/{name}") == data
    use(server)
    assert storage.sweep("s3://bucket/lost", 0) == 0


def test_an_upload_that_fails_is_aborted(
    server: s3.Server, use: Callable[[s3.Server], None], small_parts: None, tmp_path: Path
) -> None:
    class Growing(type(tmp_path)):  # type: ignore[misc]
        """A source on a disk that fails halfway."""

        reads = 0

        def open(self, *arguments: str) -> object:  # type: ignore[override]
            Growing.reads += 1
            if Growing.reads > 3:
                raise OSError(errno.EIO, "the disk failed")
            return super().open(*arguments)

    (tmp_path / "source").write_bytes(DATA)
    with pytest.raises(OSError, match="the disk failed"):
        storage.put_new("s3://bucket/aborted", Growing(tmp_path / "source"))
    assert storage.stat("s3://bucket/aborted") is None
    assert storage.sweep("s3://bucket/", 0) == 0, "nothing is left to sweep"


def test_sweep_aborts_what_a_killed_writer_left(
    server: s3.Server, small_parts: None, request: pytest.FixtureRequest
) -> None:
    backend.request("s3://bucket/swept/x", "create_multipart_upload")
    backend.request("s3://bucket/other", "create_multipart_upload")
    if request.node.callspec.id == "rclone":  # moto says that every upload began in 2010
        assert storage.sweep("s3://bucket/swept", 3600) == 0
    assert storage.sweep("s3://bucket/swept", 0) == 1
    assert storage.sweep("s3://bucket/swept", 0) == 0
    assert storage.sweep("s3://bucket", 0) == 1


def test_clients_are_shared_by_threads_and_remade_for_another_environment(
    server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(lambda _: backend.client("s3://bucket/x"), range(32)))
    assert len(clients) == 1
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert backend.client("s3://bucket/x") not in clients


def test_what_others_call_it() -> None:
    for uri in ("/data/a@b/c.mp4", "a@b", "s3://bucket/a@b/c", "s3://bucket"):
        assert storage.public(uri) == uri
    assert storage.public("s3://mine@bucket/a@b/c") == "s3://bucket/a@b/c"

"""Models behind OpenAI's chat completions: `transformers serve` with a tiny model, and a server that fails as told."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL.Image
import pytest
import runs
import tiny_models

from hpc.batch import check, cosmos_stages, failure
from hpc.curate.settings import Caption
from hpc.data.vlm import Serve, Vlm
from hpc.models import endpoint, serve, vlm
from hpc.models.serve import Server, claimed
from hpc.models.vlm import Answer, Request

TRANSFORMERS = str(Path(sys.executable).parent / "transformers")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]


def settings(**values: Any) -> Vlm:
    return msgspec.convert(values, Vlm, dec_hook=check.unit)


def completion(text: Any, reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7}}  # fmt: skip


class Scripted:
    """A server that answers what `reply(number of the try, body)` says, or breaks the connection for None."""

    def __init__(self, reply: Callable[[int, Any], Reply | None]) -> None:
        self.asked: list[tuple[float, Any, Any]] = []
        scripted, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    scripted.asked.append((time.monotonic(), self.headers, body))
                    number = len(scripted.asked) - 1
                said = reply(number, body)
                if said is None:
                    return self.connection.close()
                status, content, *more = said
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        class Wide(http.server.ThreadingHTTPServer):
            request_queue_size = 64  # by default the sixth connection at once is reset

        self.server = Wide(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def engine(self, **remote: Any) -> vlm.Engine:
        return vlm.engine(settings(model="m", max_tokens=9, endpoint={"url": self.url, **remote}))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[[Callable[[int, Any], Reply | None]], Scripted]]:
    made: list[Scripted] = []

    def start(reply: Callable[[int, Any], Reply | None]) -> Scripted:
        made.append(Scripted(reply))
        return made[-1]

    yield start
    for one in made:
        one.close()


Start = Callable[[Callable[[int, Any], Reply | None]], Scripted]


# --- a real server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Any]:
    command = [TRANSFORMERS, "serve", "{model}", "--port", "{port}", "--device", "cpu"]
    engine = vlm.engine(settings(model=str(folder), max_tokens=8, serve={"command": command, "start": "2m"}))
    yield engine
    engine.server.stop()


def test_a_server_that_the_stage_starts_answers_like_the_model(folder: Path, served: Any) -> None:
    import torch
    import transformers

    requests = [
        Request(FRAMES, 2.0, "What is it?"), Request(None, 0.0, "Hello"), Request(FRAMES[:1], 4.0, "And?", "Hm"),
    ]  # fmt: skip
    answers = served(requests)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    for request, answer in zip(requests, answers, strict=True):
        messages = [{"role": "system", "content": [{"type": "text", "text": "Hm"}]}] if request.system else []
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        if request.frames is not None:
            apart = f"{len(request.frames)} frames of one video, {1 / request.fps:g} s apart, in order:"
            pictures = [{"type": "image", "image": jpeg(frame)} for frame in request.frames]
            content = [{"type": "text", "text": apart}, *pictures, *content]
        inputs = processor.apply_chat_template(
            [*messages, {"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == processor.decode(out, skip_special_tokens=True).strip()
        assert (answer.prompt_tokens, answer.output_tokens) == (inputs["input_ids"].shape[1], len(out))
        assert answer.status == "truncated"
    assert len({answer.text for answer in answers}) > 1
    assert served.model == str(folder) and served.spent["caption_seconds"] > 0


def jpeg(frame: np.ndarray) -> PIL.Image.Image:
    out = io.BytesIO()
    PIL.Image.fromarray(frame).save(out, "jpeg", quality=90)
    return PIL.Image.open(out)


def test_a_question_for_the_server_to_refuse_leaves_the_others_alone(served: Any) -> None:
    """It has pictures of a size that the server's own library cannot open: none."""
    bad = Request(np.empty((2, 0, 4, 3), np.uint8), 2.0, "x")
    first, second = served([bad, Request(None, 0.0, "Hello")])
    assert first.status == "error" and "frames are uint8" in first.detail
    assert second == served([Request(None, 0.0, "Hello")])[0] and second.status != "error"


def test_a_server_ends_when_it_is_stopped(folder: Path) -> None:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "{model}"]
    (folder / "health").write_text("ok")
    one = Server(command, str(folder), 30)
    one.check()
    assert one.process.poll() is None and "{" not in " ".join(one.command)
    assert claimed(one.port) is None, "no other stage takes its port"
    one.stop()
    one.stop()
    assert one.process.poll() is not None
    claim = claimed(one.port)
    assert claim is not None
    claim.close()
    with pytest.raises(RuntimeError, match="ended with status"):
        one.check()


def test_what_a_server_says_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    says = "import sys; print('word ' * 2_000_000); print('the end'); sys.exit(1)"  # 10 MB, more than a pipe holds
    with pytest.raises(RuntimeError, match=r"(?s)word the end\nthe server .* ended with status 1") as caught:
        Server([sys.executable, "-c", says.replace("print('the", "print('word the")], "", 30)
    assert len(str(caught.value)) < 100_000 and list(tmp_path.iterdir()) == []


def test_a_server_whose_port_is_taken_gets_another(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("ok")
    code = (
        "import http.server, os, pathlib, socket, sys\n"
        "ports = pathlib.Path('ports.txt'); ports.open('a').write(sys.argv[1] + '\\n')\n"
        "if len(ports.read_text().split()) < TIMES:\n"
        "  taken = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    starts = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n" + code, "{port}"]
    one = Server([word.replace("TIMES", "3") for word in starts], "", 60)
    ports = (tmp_path / "ports.txt").read_text().split()
    assert len(set(ports)) == 3 and ports[-1] == str(one.port) and f":{one.port}/" in one.url
    one.check()
    one.stop()
    with pytest.raises(RuntimeError, match=r"(?s)Address already in use.* ended with status 1"):
        Server([word.replace("TIMES", "99") for word in starts], "", 60)
    assert len((tmp_path / "ports.txt").read_text().split()) == 6, "three times, and no more"


def test_a_server_that_does_not_start_is_told_with_its_last_words(folder: Path) -> None:
    says = "import sys, time; print('\\n'.join(f'line {i}' for i in range(99))); print('no GPU'); sys.stdout.flush(); "
    with pytest.raises(RuntimeError, match=r"(?s)^line 70.*no GPU\nthe server .* ended with status 3") as caught:
        Server([sys.executable, "-c", says + "sys.exit(3)"], str(folder), 30)
    assert "line 69\n" not in str(caught.value)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)no GPU\nthe server .* does not answer after 1 s"):
        Server([sys.executable, "-c", says + "time.sleep(60)"], str(folder), 1)
    assert time.monotonic() - began < 15
    with pytest.raises(RuntimeError, match=r"(?s)No such file.*the server no-such-program"):
        Server(["no-such-program", "{port}"], str(folder), 30)


def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path, folder: Path) -> None:
    (folder / "health").write_text("ok")
    code = (
        "import sys, time; from hpc.models.serve import Server\n"
        f"one = Server([sys.executable, '-m', 'http.server', '{{port}}', '--bind', '127.0.0.1', '--directory', "
        f"{str(folder)!r}], '', 30)\n"
        "print(one.process.pid, flush=True); time.sleep(60)"
    )
    for number in (signal.SIGKILL, signal.SIGINT):
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)  # fmt: skip
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert Path(f"/proc/{server}").exists()
        parent.send_signal(number)
        parent.communicate(timeout=180)
        runs.until(lambda pid=server: not Path(f"/proc/{pid}").exists())


def test_what_is_told_to_a_server_that_the_stage_starts(folder: Path) -> None:
    (folder / "health").write_text("ok")
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", str(folder)]
    said = ["env", 'X={"{model}": {"a": {fps}, "b": {}}}', *command]
    stage = {"model": str(folder), "fps": 1.5, "serve": {"command": said}}
    engine = vlm.engine(msgspec.convert(stage, Caption, dec_hook=check.unit))
    try:
        assert engine.server.command[1] == f'X={{"{folder}": {{"a": 1.5, "b": {{}}}}}}'  # type: ignore[attr-defined]
        assert engine.server.command[5] == str(engine.server.port)  # type: ignore[attr-defined]
    finally:
        engine.server.stop()  # type: ignore[attr-defined]


def test_vllm_knows_what_it_is_told() -> None:
    """By its own definitions: of its flags, and of what --media-io-kwargs says of frames."""
    vllm = json.loads((Path(__file__).parent / "golden" / "vllm.json").read_text())
    command = Serve().command
    assert command[:3] == ("vllm", "serve", "{model}"), "the model's path is the name that it serves"
    importer = re.findall(r'"(--[a-z-]+)"', Path(cosmos_stages.__file__).read_text())
    assert len(importer) == 3 and {word for word in (*command, *importer) if word[0] == "-"} <= set(vllm["flags"])
    told = json.loads(command[command.index("--media-io-kwargs") + 1].replace("{fps}", "2"))
    assert told == {"video": {"num_frames": -1, "fps": 2}} and told["video"].keys() <= set(vllm["frames"])
    assert vllm["health"] and "/health" in serve.READY


# --- what is sent, and what comes back


def test_what_is_sent(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server = scripted(lambda number, body: (200, completion("A cat.")))
    request = Request(FRAMES, 2.0, "What?", "Be brief")
    assert server.engine(key="MY_KEY")([request]) == [Answer("A cat.", "success", 11, 7)]
    _, headers, body = server.asked[0]
    assert headers["Authorization"] == "Bearer secret" and headers["Content-Type"] == "application/json"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 9, 0.0)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief"}
    before, *pictures, after = user["content"]
    assert before["text"] == "3 frames of one video, 0.5 s apart, in order:" and after["text"] == "What?"
    for part, frame in zip(pictures, FRAMES, strict=True):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/jpeg;base64"
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(jpeg(frame)))
    server.engine(send="video")([request])
    video, text = server.asked[1][2]["messages"][1]["content"]
    head, *data = video["video_url"]["url"].split(",")  # as vLLM's "video/jpeg" wants them
    assert head == "data:video/jpeg;base64" and data == [p["image_url"]["url"].split(",")[1] for p in pictures]
    assert text["text"] == "What?" and "Authorization" not in server.asked[1][1]
    server.engine()([Request(None, 0.0, "Words only")])
    assert server.asked[2][2]["messages"] == [{"role": "user", "content": "Words only"}]


def test_the_key_is_never_in_the_settings(scripted: Start) -> None:
    server = scripted(lambda number, body: (200, completion("x")))
    with pytest.raises(RuntimeError, match="no MY_KEY, the endpoint's key: name it in the spec's `secrets`"):
        server.engine(key="MY_KEY")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (completion(" A cat. "), Answer("A cat.", "success", 11, 7)),
        (completion("A cat", "length"), Answer("A cat", "truncated", 11, 7)),
        (completion("I’m sorry, no."), Answer("I’m sorry, no.", "refused", 11, 7)),
        (completion("", "content_filter"), Answer("", "refused", 11, 7, "finish_reason content_filter")),
        (completion(None, refusal="No."), Answer("No.", "refused", 11, 7, "finish_reason stop")),
        (completion(None, "length"),
         Answer("", "error", 11, 7, "the server sent no text, finish_reason length")),
        (completion("", "length"),
         Answer("", "error", 11, 7, "the model said nothing, and reached the limit of tokens")),
        (completion([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]),
         Answer("A cat.", "success", 11, 7)),
        ({"choices": [{"message": {"content": "A cat."}}]}, Answer("A cat.", "success")),
        ({"choices": []}, Answer("", "error", detail='not a chat completion: {"choices": []}')),
        (["x"], Answer("", "error", detail='not a chat completion: ["x"]')),
    ],
)  # fmt: skip
def test_what_comes_back(scripted: Start, response: Any, expected: Answer) -> None:
    assert scripted(lambda number, body: (200, response)).engine()([Request(None, 0.0, "x")]) == [expected]


# --- what goes wrong


def test_what_fails_for_a_moment_is_tried_again(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST", 0.02)
    replies: list[Reply | None] = [
        (429, {"error": "slow down"}, {"Retry-After": "7"}), (503, b"loading"), None, (200, b"<html>"), (500, b""),
        (200, completion("A cat.")),
    ]  # fmt: skip
    server = scripted(lambda number, body: replies[number])
    assert server.engine()([Request(None, 0.0, "x")]) == [Answer("A cat.", "success", 11, 7)]
    assert len(server.asked) == 6


def test_tries_are_further_and_further_apart(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    server = scripted(lambda number, body: (429, b"", {"Retry-After": "9"} if number == 1 else {}))
    with pytest.raises(RuntimeError, match="HTTP 429"):
        server.engine(retries=7).ask(Request(None, 0.0, "x"), Stop())  # type: ignore[attr-defined]
    assert pauses == [1, 9, 4, 8, 16, 32, 60]
    assert endpoint.asked_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == endpoint.asked_to_wait("soon") == 0.0
    assert 50 < endpoint.asked_to_wait(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))) < 61


def test_one_request_that_fails_for_good_is_its_answer(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST", 0.01)

    def reply(number: int, body: Any) -> Reply:
        prompt = body["messages"][0]["content"]
        return (400, {"error": {"message": "too long"}}) if prompt == "bad" else (200, completion(prompt))

    server = scripted(reply)
    engine = server.engine(retries=2)
    answers = engine([Request(None, 0.0, prompt) for prompt in (*["bad"] * 7, "a", *["bad"] * 20)])
    assert [answer.status for answer in answers] == ["error"] * 7 + ["success"] + ["error"] * 20
    assert answers[1].detail == 'Refused: HTTP 400: {"error": {"message": "too long"}}'
    assert len(server.asked) == 28, "each once"
    assert engine([Request(None, 0.0, "bad")])[0].status == "error", "a shard of one request, of a server that works"


@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_server_that_refuses_all_is_raised(scripted: Start, count: int) -> None:
    server = scripted(lambda number, body: (400, f"{number}: unknown field 'temperature'".encode()))
    with pytest.raises(RuntimeError, match=r"refuses all that m is asked .*: HTTP 400: \d+: unknown field"):
        server.engine()([Request(None, 0.0, "x")] * count)
    assert len(server.asked) <= 24 + 8, "not all of a long shard are asked"


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 529])
def test_an_outage_is_no_answer(scripted: Start, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Its shard is made again: it would be full of errors, and done."""
    monkeypatch.setattr(endpoint, "LONGEST", 0.01)
    server = scripted(lambda number, body: (200, completion("x")) if number < 3 else (status, b"oops"))
    with pytest.raises(ConnectionError, match=f"does not answer for m: HTTP {status}: oops") as caught:
        server.engine(retries=2, concurrency=1)([Request(None, 0.0, "x")] * 5)
    assert failure.REMEDIES[failure.of_exception(caught.value)].unattended
    assert len(server.asked) >= 3 + 3, "tried three times"


@pytest.mark.parametrize(
    ("reply", "words"),
    [((401, b"bad key"), "HTTP 401: bad key"), ((404, b"no model m"), "answers for m: HTTP 404: no model m"),
     ((429, b"quota"), "HTTP 429: quota")],
)  # fmt: skip
def test_what_is_wrong_with_all_is_raised(scripted: Start, monkeypatch: pytest.MonkeyPatch, reply: Any,
                                          words: str) -> None:  # fmt: skip
    monkeypatch.setattr(endpoint, "LONGEST", 0.01)
    server = scripted(lambda number, body: reply)
    with pytest.raises(RuntimeError, match=words):
        server.engine(retries=1)([Request(None, 0.0, "x")] * 3)


def test_a_server_that_is_not_there(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST", 0.01)
    with pytest.raises(ConnectionError, match="does not answer for m"):
        scripted(lambda number, body: None).engine(retries=1)([Request(None, 0.0, "x")] * 3)


def test_a_server_of_the_stage_that_dies_is_told(scripted: Start, folder: Path) -> None:
    (folder / "health").write_text("ok")
    engine = vlm.engine(settings(model=str(folder), serve={"command": [
        sys.executable, "-c", "import http.server as h, sys; print('out of memory', flush=True)\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "  def do_GET(self): self.send_response(200); self.end_headers()\n"
        "  def do_POST(self): import os; os._exit(7)\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()", "{port}"], "start": "1m"}))  # fmt: skip
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)out of memory.*ended with status 7"):
        engine([Request(None, 0.0, "x")])
    assert time.monotonic() - began < 20
    engine.server.stop()  # type: ignore[attr-defined]


def test_newer_servers_call_the_limit_otherwise(scripted: Start) -> None:
    def reply(number: int, body: Any) -> Reply:
        if "max_tokens" in body:
            return 400, {"error": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
        return 200, completion(f"{body['max_completion_tokens']}")

    server = scripted(reply)
    assert [a.text for a in server.engine(concurrency=1)([Request(None, 0.0, "x")] * 2)] == ["9", "9"]
    assert len(server.asked) == 3


def test_all_requests_learn_at_once_what_the_limit_is_called(scripted: Start) -> None:
    """All 16 are refused before one of them is answered, and there are no further tries."""
    together = threading.Barrier(16)

    def reply(number: int, body: Any) -> Reply:
        if "max_tokens" in body:
            together.wait(10)
            return 400, {"error": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
        return 200, completion("A cat.")

    engine = scripted(reply).engine(concurrency=16, retries=0)
    assert {answer.text for answer in engine([Request(None, 0.0, "x")] * 16)} == {"A cat."}


def test_requests_go_side_by_side_and_answers_come_in_order(scripted: Start) -> None:
    together = threading.Barrier(4)

    def reply(number: int, body: Any) -> Reply:
        together.wait(10)  # four at a time, or never
        time.sleep(0.05 if number % 2 else 0.0)
        return 200, completion(body["messages"][0]["content"])

    server = scripted(reply)
    engine = server.engine(concurrency=4)
    answers = engine([Request(None, 0.0, f"question {i}") for i in range(16)])
    assert [answer.text for answer in answers] == [f"question {i}" for i in range(16)]
    assert engine.spent["caption_seconds"] > max(0.1, engine.spent["data_wait_seconds"])
    assert engine.spent["data_wait_seconds"] >= 0


def test_a_second_question_follows_the_first(scripted: Start) -> None:
    server = scripted(lambda number, body: (200, completion(body["messages"][0]["content"] + "!")))

    def then(request: Request, answer: Answer) -> Request | None:
        return request._replace(prompt=f"better: {answer.text}") if request.prompt != "b" else None

    found = list(server.engine().stream([Request(None, 0.0, "a"), Request(None, 0.0, "b")], then=then))
    assert [[answer.text for answer in answers] for answers in found] == [["a!", "better: a!!"], ["b!"]]


def test_time_without_requests_is_counted_and_work_can_be_stopped(scripted: Start) -> None:
    server = scripted(lambda number, body: (200, completion("x")))

    def slow() -> Iterator[Request]:
        for _ in range(3):
            time.sleep(0.1)
            yield Request(None, 0.0, "x")

    engine = server.engine()
    assert len(list(engine.stream(slow()))) == 3
    assert engine.spent["data_wait_seconds"] > 0.2 and engine.spent["caption_seconds"] < 0.3

    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    hanging = scripted(lambda number, body: time.sleep(5))  # type: ignore[func-returns-value]
    began = time.monotonic()
    with pytest.raises(Stop):
        list(hanging.engine().stream([Request(None, 0.0, "x")], check))
    assert time.monotonic() - began < 4.5

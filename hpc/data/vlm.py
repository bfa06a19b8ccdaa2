"""Which model answers questions about frames, and where it runs: what captions, filters and labels by prompt share."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Seconds

MODEL = re.compile(r"[/~].*|[\w.-]+/[\w.-]+(@[\w./-]+)?")
Words = Annotated[str, Meta(extra={"file": True}, description="text, or {file: PATH} of a text file")]
"""The file is read where the spec is: its words are part of the resolved spec, and of the fingerprint."""
Secret = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", extra={"secret": True}, description="the name of one of the spec's secrets"
    ),
]
Concurrency = Annotated[int, Meta(ge=1, le=1024)]


class Remote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How requests go to a server that speaks OpenAI's chat completions."""

    key: Secret | None = None
    """NAME of the environment variable with the key, one of the spec's `secrets`; never the key itself."""
    concurrency: Concurrency = 16
    """Requests at a time."""
    timeout: Seconds = Seconds(600)
    """Of one request; then it is tried again."""
    retries: Annotated[int, Meta(ge=0, le=100)] = 6
    """Further tries after 408, 409, 429, 5xx and broken connections, 1 s, 2 s, 4 s ... apart, or as the server says."""
    send: Literal["images", "video"] = "images"
    """images: each frame as a JPEG, which every server of a model with eyes takes. video: the JPEGs as one video, which
    vLLM takes, and shows the model as such: for Qwen's models that is half the tokens, and they see what moves. It has
    to be told of such videos when it starts: see `serve.command`."""
    quality: Annotated[int, Meta(ge=1, le=100)] = 90
    """Of the JPEGs."""


class Endpoint(Remote, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server that is there already."""

    url: Annotated[str, Meta(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$", description="http://HOST:PORT/v1")]
    """Up to /v1: http://node:8000/v1."""


class Serve(Remote, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server that the stage starts beside itself, one for each worker, and ends with itself."""

    command: Annotated[tuple[str, ...], Meta(min_length=1)] = (
        "vllm", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}",
        "--media-io-kwargs", '{"video": {"num_frames": -1, "fps": {fps}}}',
    )  # fmt: skip
    """{model} is the folder of the model's files, {port} one that is free, {fps} the frames of a second that the model
    is shown. Others take their words likewise: [transformers, serve, "{model}", --port, "{port}"]. Without
    --media-io-kwargs vLLM takes 32 frames of a video that it is sent as JPEGs, leaves the others out without a word,
    and takes them for a second apart."""
    start: Seconds = Seconds(1800)
    """Until it must answer."""


class Vlm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model, and how it is asked. Without `endpoint` and `serve` it runs in the worker, by transformers: the stage
    wants `resources: {gpus: 1}` then, and memory for the weights, 2 bytes each, on their way to the GPU."""

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct@cc594898137f460bfe9f0759e9844b3ce807cfb5"
    """A folder (/models/qwen, ~/models/qwen), or owner/name@revision on the Hugging Face hub; without a revision what
    `main` is there or in the cache. In the worker: models of the types qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe,
    qwen3_5 and qwen3_5_moe (Cosmos-Reason1 and 2 are such). With `endpoint`: the name that the server knows it by."""
    endpoint: Endpoint | None = None
    """A server that is there already: vLLM, SGLang, a provider's."""
    serve: Serve | None = None
    """A server that the stage starts on its node: {} for vLLM."""
    max_tokens: Annotated[int, Meta(ge=1)] = 1024
    """Of an answer; longer ones are cut, and say so ("truncated"). Captions of Qwen2.5-VL have some 500."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    """0: the likeliest token each time. Above, words depend on chance, and on what is in the same batch."""
    frame_tokens: Annotated[int, Meta(ge=160, le=16384)] = 768
    """Tokens that two neighbouring frames may cost: 768, Qwen's limit, are 602,112 pixels a frame. Less is faster."""
    batch: Annotated[int, Meta(ge=1, le=512)] = 8
    """Requests that the model in the worker works on together; halved where the GPU's memory does not suffice."""

    def __post_init__(self) -> None:
        if self.endpoint is not None and self.serve is not None:
            raise ValueError("serve: a server is there already, `endpoint`: give one of the two")
        if self.endpoint is None and not MODEL.fullmatch(self.model):
            raise ValueError(
                f"model: {self.model!r} is neither a path that begins with / or ~ nor a model of the Hugging Face hub "
                "as owner/name@revision"
            )

    def models(self) -> dict[str, tuple[str, ...]]:
        return {} if self.endpoint is not None else {self.model: ()}


NEUTRAL = ("batch", *(f"{place}.{key}" for place, keys in
           (("endpoint", ("url", "key", "concurrency", "timeout", "retries")),
            ("serve", ("key", "concurrency", "timeout", "retries", "start"))) for key in keys))  # fmt: skip
"""Of a stage's NEUTRAL settings: those of the model that do not change what it says, but for rounding. A server may
move: what it says depends on the model that `model` names."""

"""The settings of every curation stage: light, so that the login node can check a spec without torch, av or numpy.

Each stage is one frozen struct. Its class variables tell the control plane what the stage is:
KIND     its name in a spec                   CODE    the module that does the work, imported on compute nodes only
PHASES   "map" (one array task row per plan row) and "barrier" (freezes its inputs and plans what follows), in order
OBJECTS  suffixes of what one shard publishes, in order; the last one being there means the shard is there
INPUT_SUFFIXES    of the files it takes from a folder, for stages that read the spec's inputs
VERSION  raise it when the code's output changes for the same settings: it is part of the fingerprint
NEUTRAL  settings that never change the output; not part of the fingerprint
SECONDS_PER_GIB   first guess of one worker's time per GiB of input, until records of earlier shards say better

PAGES, of some, names pages that a stage leaves in its folder: reports link to them.

Settings of a stage behind a barrier may have `tasks`: how many array tasks share its shards, or None; and `files`:
those that the barrier reads besides. With another content of one the stage makes another version.

Settings that name models say so by one method, which `hpc models pull` asks:

    def models(self) -> dict[str, tuple[str, ...]]:
        return {self.model: ()}

Model -> its files. A model is a path (nothing is fetched then) or owner/name@revision on the Hugging Face hub. Its
files are names, e.g. ("config.json", "model.safetensors"); () stands for what transformers loads of it.

Settings that must go together with what is in `needs` have `unmet(kinds) -> str`: given the kinds of those
stages it says what is lacking, "" for nothing. Settings of which some name a stage in `needs` have `wired() ->
{setting: (name of the stage, kinds that it may be)}`. `clash(needed) -> str` is given the settings of those stages by
name, and says what does not go together.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.curate.settings.caption import Caption as Caption
from hpc.curate.settings.caption_import import CaptionImport as CaptionImport
from hpc.curate.settings.caption_qa import CaptionCheck, CaptionFind, CaptionQa  # noqa: F401
from hpc.curate.settings.dedup import Dedup, DedupAssign, DedupFit, DedupMerge, DedupPrune  # noqa: F401
from hpc.curate.settings.embed import Embed as Embed
from hpc.curate.settings.encode import Encode
from hpc.curate.settings.filters import Filters
from hpc.curate.settings.judge import Classify as Classify
from hpc.curate.settings.judge import Semantic as Semantic
from hpc.curate.settings.preview import Preview, Thumbnail
from hpc.curate.settings.shard import Shard, ShardIndex, ShardMembers, ShardTree  # noqa: F401
from hpc.curate.settings.split import Split
from hpc.curate.settings.text_embed import TextEmbed as TextEmbed

VIDEO = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv",
         ".3gp", ".ogv", ".gif", ".mxf")  # fmt: skip
"""Files with other names are not looked at; a spec's `inputs.match` takes what it names, whatever the suffix."""


class Clips(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Videos -> clips: probe, find the cuts, encode each clip, thumbnails; one decode of each input."""

    KIND: ClassVar[str] = "curate.clips"
    CODE: ClassVar[str] = "hpc.curate.clips"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (*VIDEO, ".tar")
    VERSION: ClassVar[int] = 4
    NEUTRAL: ClassVar[tuple[str, ...]] = ("lanes",)
    SECONDS_PER_GIB: ClassVar[float] = 3000.0

    split: Split = Split()
    encode: Encode = Encode()
    filter: Filters = Filters()
    thumbnail: Thumbnail = Thumbnail()
    preview: Preview | None = None
    """None: no previews."""
    ids: Literal["path", "content"] = "path"
    """What a clip's uuid is made of. path: the video's uri (without a profile) and the span, as in Cosmos-Curate.
    content: the coded pictures and the span, so that a moved bucket or a renamed file gives the same ids, and a copy is
    found out."""
    camera: str | None = None
    """Of inputs with `group_by`: the camera whose pictures say where to cut and what to keep; null for the first by
    name. The others get the same spans, as further videos of the same clip."""
    missing_camera: Literal["drop", "keep"] = "drop"
    """What becomes of a clip that one of the others did not record whole. keep: it has the cameras that did."""
    limit_clips: Annotated[int, Meta(ge=1)] | None = None
    """Keep the first this many clips of each video (of a video planned as spans: of each span) and look no further: for
    trying things out."""
    lanes: Annotated[int, Meta(ge=0, le=64)] = 0
    """Videos of a shard that one worker works on at the same time, in threads; it never changes the output. 0: 8 where
    a GPU decodes, whose video engines one video alone leaves idle, else 1 (`resources: {workers: ...}` uses more CPUs
    better). Each takes memory for some 200 frames."""

    def models(self) -> dict[str, tuple[str, ...]]:
        aesthetic = self.filter.named().get("aesthetic")
        return aesthetic.models() if aesthetic is not None else {}

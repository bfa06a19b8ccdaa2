"""Videos: probe, decode frame by frame with exact times, encode clips, thumbnails. This package alone touches PyAV.

A `source` is a path or a seekable binary file (`hpc.data.storage.open`). Frames are numbered in the order in which they
are shown. Times are kept as the file has them, integers in units of `time_base`, so that a variable frame rate stays
what it is. Frames come out upright: a rotation in the metadata has been applied.

    with open(path, "rb") as file:
        video = probe(file)
        for number, frame in Decoder(file):
            seconds = (frame.pts - video.start_pts) * video.time_base
"""

from hpc.data.video.container import CONTAINERS, Frame, Source, Unfit, refused
from hpc.data.video.decode import Decoder
from hpc.data.video.encode import Coding, Encoder, try_encoder, write
from hpc.data.video.index import Index, index, times
from hpc.data.video.picture import Luma, Points, Resizer, animation, webp
from hpc.data.video.probe import Video, probe
from hpc.data.video.remux import COPIED, Inwards, Remuxer
from hpc.data.video.sample import measured, sample, still
from hpc.data.video.tap import Tap
from hpc.data.video.vectors import motion_vectors

__all__ = [
    "CONTAINERS",
    "COPIED",
    "Coding",
    "Decoder",
    "Encoder",
    "Frame",
    "Index",
    "Inwards",
    "Luma",
    "Points",
    "Remuxer",
    "Resizer",
    "Source",
    "Tap",
    "Unfit",
    "Video",
    "animation",
    "index",
    "measured",
    "motion_vectors",
    "probe",
    "refused",
    "sample",
    "still",
    "times",
    "try_encoder",
    "webp",
    "write",
]

"""The settings of the stages that evaluate videos; hpc.curate.settings says what class variables mean."""

from hpc.evaluate.settings.videos import Measure as Measure
from hpc.evaluate.settings.videos import Merge as Merge
from hpc.evaluate.settings.videos import Videos as Videos

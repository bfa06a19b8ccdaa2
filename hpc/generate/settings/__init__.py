"""The settings of the stages that generate videos; hpc.curate.settings says what class variables mean."""

from hpc.generate.settings.ar import Ar as Ar
from hpc.generate.settings.ar import ArPrompts as ArPrompts
from hpc.generate.settings.ar import ArRanks as ArRanks
from hpc.generate.settings.diffusion import Diffusion as Diffusion
from hpc.generate.settings.diffusion import DiffusionRanks as DiffusionRanks
from hpc.generate.settings.diffusion import Prompts as Prompts

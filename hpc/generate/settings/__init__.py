"""The settings of the stages that generate videos; hpc.curate.settings says what class variables mean."""

from hpc.generate.settings.diffusion import Diffusion as Diffusion
from hpc.generate.settings.diffusion import Prompts as Prompts

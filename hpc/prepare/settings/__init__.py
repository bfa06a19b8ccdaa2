"""The settings of the stages that make training data of clips; hpc.curate.settings says what class variables mean."""

from hpc.prepare.settings.latents import Latents, LatentsEncode, LatentsList, LatentsTrained  # noqa: F401
from hpc.prepare.settings.tokens import Action, Instruction, Megatron, Video2World  # noqa: F401
from hpc.prepare.settings.tokens import Tokens as Tokens
from hpc.prepare.settings.tokens import TokensIds as TokensIds
from hpc.prepare.settings.tokens import TokensTrained as TokensTrained

"""The settings of the trainers; hpc.curate.settings says what the class variables mean.

Settings of a kind that runs on several ranks may have a method `shared_by(ranks)`, which raises ValueError("field: what
is wrong") where so many (nodes x workers) cannot work together.
"""

from hpc.train.settings.ar import TrainAr as TrainAr
from hpc.train.settings.convert import ConvertAr as ConvertAr
from hpc.train.settings.convert import ConvertDiffusion as ConvertDiffusion
from hpc.train.settings.diffusion import TrainDiffusion as TrainDiffusion
from hpc.train.settings.tokenizer import TrainTokenizer as TrainTokenizer

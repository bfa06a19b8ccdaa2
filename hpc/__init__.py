"""From raw video to trained world models on plain Slurm."""

import os

# kernels/ and sbatch/ are hpc.kernels and hpc.sbatch. Installed they lie inside this folder; in a checkout, which
# Python may import before what is installed since it is the current folder, they lie beside it.
if not os.path.isdir(os.path.join(__path__[0], "kernels")):  # noqa: PTH112, PTH118  (pathlib costs 5 ms on login nodes)
    __path__.append(os.path.dirname(__path__[0]))  # noqa: PTH120

"""GPU kernels, one op a file: formula, kernel, autograd, plain torch reference. Imported as hpc.kernels.

They import torch and triton only.
"""

"""GPU kernels, one op a file: formula, kernel, autograd, plain torch reference. Imported as hpc.kernels; imports torch and triton only."""

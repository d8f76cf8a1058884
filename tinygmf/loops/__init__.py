"""Loop nests for the CPU device: kernels as one would write them in C."""

"""Fused kernels for CUDA of what other files of maths compute everywhere: optional, chosen when they are called."""

"""The compiled decoder: 8-bit weights, activations and KV cache, by AVX-512 (VNNI, AMX) or AVX2.

`kernels/` is C++ without dependencies, `library` compiles it once and loads it, `runner` is the
engine's way to it. All of it is optional: what it cannot do, `model/decoder` does with torch.
"""

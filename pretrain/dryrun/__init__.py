"""A dry run: the code path of CUDA, at full size, as any rank of any layout, on a machine without a GPU.

Tensors on the CPU are real. Tensors on "cuda" have a shape, a type, strides and a storage, and no values; collectives
check what they are given, note it, and do nothing. What this proves, on the lines that are reached: that shapes, types
and devices fit, that NCCL would take every tensor, that sends meet receives and the ranks of a group make their
collectives in one order, what memory all tensors need together, and where the host waits for the device.

What it cannot prove: numbers (branches that look at one see 1); that a kernel exists or which one CUDA takes (fused
attention, norms and activations are assumed to be one kernel each); races between streams, and hangs that are not a
matter of order; the memory of NCCL, cuBLAS and the CUDA context; what fragmentation loses; time.
"""

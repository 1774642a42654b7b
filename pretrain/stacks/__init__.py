"""Checkpoints of other training stacks (Megatron-LM, DeepSpeed's ZeRO), in and out, with the state of their optimizer.

A pickle is data here as everywhere: it is read by a machine of ours (`pretrain/stacks/pickles.py`), never loaded.
"""

"""Checkpoints of Megatron-LM and of the DeepSpeed that it trains with, in and out, with the state of their optimizer.

A pickle is data here as everywhere: it is read by a machine of ours (`pretrain/megatron_lm/pickles.py`), never loaded.
"""

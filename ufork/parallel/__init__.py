"""Ranks, their worlds, and the DeepSpeed engines that run in them."""

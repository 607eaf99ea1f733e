"""Turns a plain model into a rank's trainable part: tensor parallelism, then DeepSpeed ZeRO-3."""

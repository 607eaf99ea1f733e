"""Makes a plain model trainable on a rank: tensor parallelism, then DeepSpeed ZeRO-3."""

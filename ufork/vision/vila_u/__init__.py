"""VILA-U's image tokenizer: SigLIP's vision encoder, a residual quantizer and a convolutional decoder."""

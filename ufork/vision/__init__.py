"""Image files, and the image tokenizer: a residual-quantised autoencoder, its fitting, and the frozen codec."""

"""The image tokenizer: a residual-quantised autoencoder, its fitting, and the frozen codec made from it."""

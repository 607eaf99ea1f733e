"""Models of ufork as models of Hugging Face's transformers: their classes, and the folders that transformers loads."""

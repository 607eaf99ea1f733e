"""Building blocks of any decoder: attention, normalisation, rotary embedding, linear layers, cross-entropy."""

"""Parts of a decoder that have no idea of the Y: attention, norms, rotary embedding, linear layers, losses."""

"""The demo's own sources: scenes of sprites and single emoji, made sample by sample."""

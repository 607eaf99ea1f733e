"""Reports: a page about a run, charts, and grids of drawings; text only, no model."""

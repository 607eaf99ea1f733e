"""Training: stages of a recipe, the step, its optimizer and what it reports."""

"""Training: a phase's session, loop and step, its optimizer, losses and telemetry."""

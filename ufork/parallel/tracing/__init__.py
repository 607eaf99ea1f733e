"""Records what each rank of a step does, and draws it."""

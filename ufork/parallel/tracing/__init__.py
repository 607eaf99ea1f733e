"""Records and draws what each rank runs in a step."""

"""What the machine has, what ufork will use instead of what is absent, and how to get it."""

"""The demo: a recipe from its data to its report, fitted to this machine, as one command."""

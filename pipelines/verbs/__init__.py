"""One module per verb of `ufork`: `add_arguments(parser)`, and `run(arguments)`, which imports what is heavy."""

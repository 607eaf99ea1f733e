"""Entry programs (the `ufork` command and its verbs) and the recipes they run."""

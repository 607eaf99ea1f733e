"""Results of a suite: statistics, tables and figures."""

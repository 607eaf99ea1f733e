"""Starts the ranks of a job, and passes stop signals on to them."""

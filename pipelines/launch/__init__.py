"""Starts the ranks of a job, and forwards stop signals to them."""

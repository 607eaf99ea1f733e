"""Recorded results of recipes, and whether a run came out as they did."""

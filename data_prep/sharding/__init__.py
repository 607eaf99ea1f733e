"""Converts a collection of images and text into dataset shards, with several processes or machines."""

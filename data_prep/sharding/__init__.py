"""Turns a collection of images and text into dataset shards."""

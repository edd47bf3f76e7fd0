"""Rounds between one server and its sites, on Flower messages."""

"""Thin clients of `serve`: a browser page and a terminal."""

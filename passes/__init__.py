"""Rewrites of the graph: cleanups, and transforms that change an architecture and say what they keep."""

"""Weights to artifacts, and the proof that they still reason."""

"""Predictions: what an application calls, and what runs on its thread."""

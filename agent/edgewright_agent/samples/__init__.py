"""Sampled inputs: off unless the device's owner and the operator both say so."""

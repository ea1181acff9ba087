"""The daemon: models behind the Open Inference Protocol v2."""

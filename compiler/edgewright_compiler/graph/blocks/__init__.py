"""Preprocessing that exports to ONNX and TFLite with the same numbers, so that a package takes the raw sample.

Compose blocks with nn.Sequential; shapes of one sample are fixed, as everywhere in a package. What does not export
(`text.Vocabulary`) is declared `preprocess: host` and covered by golden vectors (`graph.golden`).
"""

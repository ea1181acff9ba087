"""A torch graph as ONNX and as TFLite, and whether what a file answers is what torch answered."""

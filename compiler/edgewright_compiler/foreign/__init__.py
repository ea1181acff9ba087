"""Finished model files from elsewhere: quantized where that helps, tested, and packaged without being trained."""

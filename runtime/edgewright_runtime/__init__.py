"""One `Session` over onnxruntime, ai-edge-litert and tflite-runtime, and the self-test that both ends of the wire run.

Import `edgewright_runtime.runtime` and `edgewright_runtime.selftest`; a library is loaded when a session opens.
"""

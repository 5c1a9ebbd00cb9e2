"""The decode program as an ONNX file: JAX's own trace of it, translated operation by operation."""

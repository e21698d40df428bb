"""The names of the libraries that run a network."""

ENGINES = ("jax", "onnxruntime", "openvino")

"""A release as one ONNX file for live video: the graph, its check against torch, 8 bits, and how fast it is."""

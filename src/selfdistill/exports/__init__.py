"""Trained networks, taken out of the pipeline: as a module, as a folder of their own, as ONNX; with a model card."""

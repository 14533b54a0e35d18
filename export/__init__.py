"""Compiles: checkpoint -> ONNX -> FP16 -> TensorRT plan, and proves that they agree."""

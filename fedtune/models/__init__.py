"""The frozen quantized base model and the low-rank adapter on top of it."""

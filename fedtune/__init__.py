"""fedtune: federated LoRA fine-tuning of quantized language models."""

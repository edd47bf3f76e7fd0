"""The loop that a user of transformers and peft writes, as what local training is compared with.

A batch is padded to its longest row, the model makes the logits of every token, and labels of -100 keep the
prompt and the padding out of the loss. Base, adapter, rate and clipping are those of fedtune's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fedtune.config.schema import Config
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.base import quantized_folder
from fedtune.models.hardware import compute_dtype, resolve_device
from fedtune.models.messages import without_peft_warnings

__all__ = ["PlainLoop", "collate", "load_plain_base"]

_IGNORED = -100


def load_plain_base(config: Config) -> Any:
    """Load the quantized base as transformers gives it; all its parameters are frozen by peft later."""
    model = config.model
    device = resolve_device(model.device)
    return AutoModelForCausalLM.from_pretrained(
        quantized_folder(model), dtype=compute_dtype(model, device), device_map={"": device}
    )


class PlainLoop:
    """Adapter, optimizer and step.

    Args:
        base: A causal language model.
        config: ``peft``, and of ``training`` the rate, the clipping and whether layers are checkpointed.
    """

    def __init__(self, base: Any, config: Config) -> None:
        base.config.use_cache = False
        targets = config.peft.target_modules
        lora = LoraConfig(
            r=config.peft.rank,
            lora_alpha=int(config.peft.alpha),
            lora_dropout=config.peft.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        with without_peft_warnings():
            self.model: Any = get_peft_model(base, lora)
        if config.training.gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
            base.disable_input_require_grads()  # only reentrant checkpointing needs them
        self.model.train()
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=config.training.learning_rate, weight_decay=config.training.weight_decay
        )
        self._max_norm = config.training.max_gradient_norm

    def step(self, rows: Sequence[TokenizedExample]) -> float:
        """Take one step; returns the loss before it, in mean nats per response token."""
        loss = self.model(**collate(rows)).loss
        loss.backward()
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def collate(rows: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
    """Pad rows to the longest: input ids, attention mask, and labels that leave out prompts and padding."""
    shape = len(rows), max(len(row.token_ids) for row in rows)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, _IGNORED),
    }
    for line, row in enumerate(rows):
        length, ids = len(row.token_ids), torch.from_numpy(row.token_ids).long()
        batch["input_ids"][line, :length] = ids
        batch["attention_mask"][line, :length] = 1
        batch["labels"][line, :length] = ids.masked_fill(~torch.from_numpy(row.loss_mask), _IGNORED)
    return batch

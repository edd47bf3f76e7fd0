"""What makes hundreds of federations of a real model affordable on one core.

    rows        1,000 short clinical definitions: 100 of each of the ten specialities that have the most
    vocabulary  SmolLM2-135M with the tokens that these rows need: 49,152 logits cost more than its layers
    layers      adapters are on the last layers alone, so what lies below computes the same for a row at every
                site, in every round and every run: it is computed once and remembered

Rows and model are made from the installed packages when they are first needed, and lie in fedtune's cache.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from fedtune.config.schema import Config
from fedtune.data.examples import Example
from fedtune.data.hpo import load_hpo
from fedtune.data.load import load_examples
from fedtune.data.templates import render
from fedtune.data.tokenize import tokenize_all
from fedtune.models import adapted
from fedtune.models.cache import cache_folder, cache_key, make_once
from fedtune.models.gguf import converted
from fedtune.models.resolve import resolve
from fedtune.training.batches import lay_out
from fedtune.training.loss import ResponseLoss

__all__ = ["lower_layers_remembered", "make_model", "make_rows", "prepare", "remember"]

SPECIALITIES, ROWS_OF_EACH = 10, 100
LOWER_DTYPE = torch.bfloat16
"""What SmolLM2 was trained in; the layer with the adapters and the head compute in float32."""
MOST_PROMPT_TOKENS, MOST_RESPONSE_TOKENS = 14, 24


def prepare(config: Config) -> list[str]:
    """Make rows and model from what an experiment names, and return the overrides that name them."""
    cache = cache_folder(config.model)
    folder = cache / "aggregation_study"
    full = converted(resolve(config.model).path, cache)
    rows = make_rows(folder, AutoTokenizer.from_pretrained(full))
    data = replace(config.data, source="files", files=(str(rows),))
    rendered = [render(example, data, None) for example in load_examples(data).examples]
    model = make_model(folder, full, [f"{row.prompt}{row.response}" for row in rendered])
    return [f"model.name={model}", "data=files", f"data.files=[{rows}]"]


def make_rows(folder: Path, tokenizer: Any) -> Path:
    """Write the study's rows as JSON Lines, and return the file."""

    def short(example: Example) -> bool:
        prompt, response = (len(tokenizer(turn.content)["input_ids"]) for turn in example.turns)
        return bool(prompt <= MOST_PROMPT_TOKENS and response <= MOST_RESPONSE_TOKENS)

    def write(into: Path) -> None:
        rows = [example for example in load_hpo()[0] if short(example)]
        count = Counter(example.columns["site"] for example in rows)
        taken = [
            example
            for site, _ in count.most_common(SPECIALITIES)
            for example in [row for row in rows if row.columns["site"] == site][:ROWS_OF_EACH]
        ]
        lines = [
            json.dumps({
                "id": example.id,
                "site": example.columns["site"],
                "prompt": example.turns[0].content,
                "response": example.turns[1].content,
            })
            for example in taken
        ]  # fmt: skip
        (into / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return make_once(folder / "rows", write) / "rows.jsonl"


def make_model(folder: Path, full: Path, texts: Iterable[str]) -> Path:
    """Write a model with the tokens alone that some texts need, and return its folder.

    Its tokenizer cuts these texts as the full one does, and its logits are the full model's for the tokens
    that are left: the probabilities are those of the full model, given that the token is one of them.

    Args:
        folder: Where to make it.
        full: A Llama in the Hugging Face layout with tied embeddings and a byte-level BPE tokenizer.
        texts: All that it will be asked to read, templates included.
    """

    def write(into: Path) -> None:
        described = json.loads((full / "tokenizer.json").read_text(encoding="utf-8"))
        kept = _trim(described, texts, AutoTokenizer.from_pretrained(full).backend_tokenizer)
        (into / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            (into / name).write_bytes((full / name).read_bytes())
        config = json.loads((full / "config.json").read_text(encoding="utf-8")) | {"vocab_size": len(kept)}
        (into / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        weights = load_file(full / "model.safetensors")
        embedding = "model.embed_tokens.weight"
        save_file(
            weights | {embedding: weights[embedding][torch.tensor(kept)].contiguous()},
            into / "model.safetensors",
            {"format": "pt"},
        )

    return make_once(folder / "model", write)


def _trim(described: dict[str, Any], texts: Iterable[str], tokenizer: Any) -> list[int]:
    """Leave in a tokenizer's description what some texts need; return the old ids by the new ones."""
    bpe = described["model"]
    merges = [tuple(pair) for pair in bpe["merges"]]
    order = {pair: index for index, pair in enumerate(merges)}
    used: set[int] = set()
    pieces = {piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    for piece in sorted(pieces):
        parts = list(piece)
        while known := [order[pair] for pair in itertools.pairwise(parts) if pair in order]:
            first = min(known)  # Sennrich et al. 2016, algorithm 1: the earliest merge, everywhere
            used.add(first)
            parts = _merged(parts, merges[first])
    special = {token["content"] for token in described["added_tokens"]}
    tokens = special | {token for token in bpe["vocab"] if len(token) == 1}
    tokens |= {left + right for left, right in (merges[index] for index in used)}
    kept = sorted(bpe["vocab"][token] for token in tokens)
    new = {old: index for index, old in enumerate(kept)}
    bpe["merges"] = [list(merges[index]) for index in sorted(used)]
    bpe["vocab"] = {token: new[old] for token, old in bpe["vocab"].items() if old in new}
    for token in described["added_tokens"]:
        token["id"] = new[token["id"]]
    return kept


def _merged(parts: list[str], pair: tuple[str, ...]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def _places(positions: Tensor) -> list[Tensor]:
    """Return where each row stands in a line of rows end to end, which may see a beginning in common."""
    begins = (torch.nonzero(positions[1:] <= positions[:-1]).flatten() + 1).tolist()
    shared = torch.arange(int(positions[begins[0]]) if begins else 0)
    borders = itertools.pairwise([*begins, len(positions)])
    first = torch.arange(begins[0] if begins else len(positions))
    return [first, *(torch.cat([shared, torch.arange(*border)]) for border in borders)]


class _Lower(nn.Module):
    """The layers below the lowest adapter, in the place of the first; what they gave is kept by row.

    A place sees only what is before it in its row, so neither padding nor the other rows of a batch change
    anything. A row is known by its tokens.
    """

    def __init__(self, layers: Iterable[nn.Module], memory: dict[bytes, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        # In a tuple they are no part of the model: who walks through its modules is through sooner.
        self.layers = tuple(layer.to(dtype) for layer in layers)
        self.memory = memory
        self.dtype = dtype
        self.rows: list[tuple[bytes, int, Tensor]] = []

    def note(self, model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Remember which rows come, and where each stands; a hook before the model's forward pass."""
        tokens = named["input_ids"]
        if named.get("use_cache"):  # an answer is being written, token by token: nothing comes twice
            found = []
        elif len(tokens) == 1:
            found = [(0, places) for places in _places(named["position_ids"][0])]
        else:
            mask = named.get("attention_mask")
            lengths = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(1).tolist()
            found = [(line, torch.arange(length)) for line, length in enumerate(lengths)]
        self.rows = [(tokens[line, places].numpy().tobytes(), line, places) for line, places in found]

    @torch.no_grad()
    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
        """Return the hidden states above these layers, (lines, tokens, hidden size)."""
        if not self.rows or not all(row in self.memory for row, _, _ in self.rows):
            hidden_states = self._compute(hidden_states, named).to(hidden_states.dtype)
            for row, line, places in self.rows:
                self.memory[row] = hidden_states[line, places]
            return hidden_states
        found = torch.zeros_like(hidden_states)
        for row, line, places in self.rows:
            found[line, places] = self.memory[row]
        return found

    def _compute(self, hidden_states: Tensor, named: Mapping[str, Any]) -> Tensor:
        def typed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(typed, value))
            return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        hidden_states = typed(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **{name: typed(value) for name, value in named.items()})
        return hidden_states


class _Nothing(nn.Module):
    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
        """Return what came."""
        return hidden_states


def remember(model: nn.Module, memory: dict[bytes, Tensor], dtype: torch.dtype) -> _Lower:
    """Put the layers below a Llama's lowest adapter behind a memory, in place; they compute in ``dtype``."""
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)  # noqa: S101
    lowest = next(
        index
        for index, layer in enumerate(layers)
        if any("lora_" in name for name, _ in layer.named_parameters())
    )
    lower = _Lower(layers[:lowest], memory, dtype)
    for index in range(lowest):
        layers[index] = lower if index == 0 else _Nothing()
    model.register_forward_pre_hook(lower.note, with_kwargs=True)
    return lower


@contextmanager
def lower_layers_remembered(folder: Path) -> Iterator[Callable[[Config], None]]:
    """While active, models that are loaded remember what lies below their adapters.

    Yields:
        A function that computes it for all rows of a configuration at once, or reads it from ``folder``.
    """
    memory: dict[bytes, Tensor] = {}
    load = adapted.load_adapted_model

    def loaded(*arguments: Any, **named: Any) -> adapted.AdaptedModel:
        model = load(*arguments, **named)
        lower = remember(model.model.get_base_model().model, memory, LOWER_DTYPE)
        assert lower.layers  # noqa: S101
        return model

    def fill(config: Config) -> None:
        if memory:
            return
        key = cache_key(str(config.model), str(config.data), str(config.peft.target_modules))

        def write(into: Path) -> None:
            model = adapted.shared_adapted_model(config.model, config.peft, gradient_checkpointing=False)
            rows = tokenize_all(load_examples(config.data).examples, model.tokenizer, config.data)
            loss = ResponseLoss(model.model)
            with torch.no_grad():
                for batch in lay_out(rows, microbatch_tokens=1024, packing=False, share_prefix=False):
                    loss(batch)
            save_file({row.hex(): states for row, states in memory.items()}, into / "states.safetensors")

        states = load_file(make_once(folder / key, write) / "states.safetensors")
        memory.update((bytes.fromhex(row), tensor) for row, tensor in states.items())

    adapted.load_adapted_model = loaded  # type: ignore[assignment]
    try:
        yield fill
    finally:
        adapted.load_adapted_model = load

"""``fedtune chat RUN``: talk to the model that a run made, in the template that it was trained with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from fedtune.commands.reporting import print_json, say
from fedtune.commands.runs import OpenRun, open_run

if TYPE_CHECKING:
    from fedtune.data.examples import Turn
    from fedtune.models.adapted import AdaptedModel

__all__ = ["run"]

_HELP = "Type a message; an empty line, /quit or Ctrl-D ends. /new forgets what was said."


def run(arguments: argparse.Namespace) -> int:
    """Answer one prompt, or hold a conversation on the terminal.

    Returns:
        0.
    """
    opened = open_run(arguments.run)
    model = _loaded(opened, with_adapter=not arguments.base)
    if arguments.prompt is None:
        _converse(opened, model, arguments.max_new_tokens)
        return 0
    answer = _answer(
        opened, model, [_turn("user", arguments.prompt)], arguments.max_new_tokens, show=not arguments.json
    )
    if arguments.json:
        print_json({"run": str(opened.path), "prompt": arguments.prompt, "answer": answer})
    return 0


def _loaded(opened: OpenRun, *, with_adapter: bool) -> AdaptedModel:
    from fedtune.models.adapter import initial_adapter, rank_of  # noqa: PLC0415
    from fedtune.models.hardware import set_threads  # noqa: PLC0415

    adapter = opened.adapter() if with_adapter else None
    set_threads(opened.config.training.threads)
    model = opened.model(rank=rank_of(adapter) if adapter else None)
    # The seeded start has B = 0: with it the model is the base.
    model.load_adapter(adapter or initial_adapter(model.spec, opened.config.seed))
    model.model.eval()
    return model


def _converse(opened: OpenRun, model: AdaptedModel, max_new_tokens: int) -> None:
    say(_HELP)
    turns: list[Turn] = []
    while True:
        sys.stderr.write("\n> ")
        sys.stderr.flush()
        text = sys.stdin.readline().strip()
        if text in ("", "/quit"):
            return
        if text == "/new":
            turns = []
            continue
        turns.append(_turn("user", text))
        turns.append(_turn("assistant", _answer(opened, model, turns, max_new_tokens, show=True)))


def _turn(role: Literal["user", "assistant"], content: str) -> Turn:
    from fedtune.data.examples import Turn  # noqa: PLC0415

    return Turn(role=role, content=content)


def _answer(
    opened: OpenRun, model: AdaptedModel, turns: Sequence[Turn], max_new_tokens: int, *, show: bool
) -> str:
    """Answer the last turn, greedily; with ``show`` each word goes to stdout as soon as it is known."""
    import torch  # noqa: PLC0415
    from transformers import GenerationConfig, TextStreamer  # noqa: PLC0415

    from fedtune.data.examples import Example  # noqa: PLC0415
    from fedtune.data.tokenize import stop_token_ids, tokenize_prompt  # noqa: PLC0415

    tokenizer, data = model.tokenizer, opened.config.data
    # The last turn stands for the answer to come: a prompt is what lies before it.
    asked = Example(id="chat", turns=(*turns, _turn("assistant", "")), text=None, columns={})
    prompt = torch.from_numpy(tokenize_prompt(asked, tokenizer, data)).to(model.device, torch.long)[None]
    stops = stop_token_ids(tokenizer, data)
    base: Any = model.model.get_base_model()
    tokens = base.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
            use_cache=True,
        ),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None,
    )
    return str(tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)).strip()

"""The prompt of a chat request: the released prompt with as much of the documents as fits, as token ids.

Documents are cut to fit the prompt's share and the model's window, and what was cut is counted. Control tokens of the
model in what people wrote are made plain text. Reads and writes nothing. Fails with `QuestionTooLong` and `InvalidRequest`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tasks.serving.refusals import InvalidRequest, QuestionTooLong
from tasks.serving.releases import Loaded

if TYPE_CHECKING:
    from tasks.knowledge.search import Hit

Message = dict[str, str]


@dataclass(frozen=True)
class BuiltPrompt:
    """A prompt as token ids, the hits it shows, and what did not fit."""

    token_ids: list[int]
    shown: "Sequence[Hit]"
    context_tokens: int
    context_tokens_cut: int
    context: str = ""  # the text of those hits, as far as it is shown


def build_prompt(loaded: Loaded, messages: Sequence[Message], hits: "Sequence[Hit]", max_tokens: int) -> BuiltPrompt:
    """Return the prompt for `messages` with as much of `hits` as fits. Raises QuestionTooLong."""
    tokenizer, front = loaded.model.tokenizer, loaded.prompt.front
    plain = [{"role": message["role"], "content": defuse(message["content"], tokenizer)} for message in messages]
    system = "\n\n".join([front.system, *(item["content"] for item in plain if item["role"] == "system")]).strip()
    turns = [item for item in plain if item["role"] != "system"]

    def rendered(context: str) -> list[int]:
        question = {"role": "user", "content": loaded.prompt.render(context, turns[-1]["content"])}
        # An empty system message too, as in training: without one, some templates add a greeting of their own.
        conversation = [{"role": "system", "content": system}, *turns[:-1], question]
        try:
            ids: list[int] = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"expected roles in an order that the model's template takes, found: {error}. Next: reorder messages."
            ) from error
        return ids

    room = loaded.model.window - max_tokens - len(rendered(""))
    if room < 0:
        raise QuestionTooLong(
            f"expected messages and max_tokens to fit the model's window of {loaded.model.window} tokens, "
            f"found {-room} too many. Next: shorten the messages or lower max_tokens."
        )
    # Tokens at the seams may merge or split: a small reserve keeps the whole inside the window.
    budget = max(0, min(front.context_tokens, room - 8))
    context, shown, used, cut = fit_context(hits, tokenizer, budget)
    return BuiltPrompt(rendered(context), shown, used, cut, context)


def fit_context(hits: "Sequence[Hit]", tokenizer: Any, budget: int) -> "tuple[str, Sequence[Hit], int, int]":
    """Return the text of the best hits within `budget` tokens, those hits, tokens used, and tokens cut off."""
    blocks: list[str] = []
    shown: list[Hit] = []
    used = cut = 0
    for number, hit in enumerate(hits, start=1):
        block = defuse(f"[{number}] {hit.title}\n{hit.text.strip()}\n\n", tokenizer)
        encoded = tokenizer(block, add_special_tokens=False, return_offsets_mapping=True)
        size, left = len(encoded["input_ids"]), budget - used
        if size > left:
            cut += size - max(left, 0)
            block = block[: encoded["offset_mapping"][left][0]] if left > 0 else ""
            size = max(left, 0)
        if block.strip():
            blocks.append(block)
            shown.append(hit)
        used += size
    return "".join(blocks).strip(), shown, used, cut


def defuse(text: str, tokenizer: Any) -> str:
    """Return `text` in which the model's control tokens are plain text: nobody writes turns but the assistant."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens |= set(tokenizer.all_special_tokens)
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    if not longest_first:
        return text
    found = re.compile("|".join(map(re.escape, longest_first)))
    # One space after the first character: the reader still sees it, the tokenizer no longer does.
    return found.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

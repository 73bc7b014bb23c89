"""CLIP's byte-pair tokeniser, exactly as OpenAI's: strings to padded rows of token ids.

The vocabulary file comes with open_clip. Next: ``text.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from utils.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
CONTEXT_LENGTH = 77


class ClipTokenizer(SimpleTokenizer):
    """open_clip's tokeniser with OpenAI's spelling of the two special tokens, as in the published vocabulary."""

    def __init__(self) -> None:
        """Read the vocabulary."""
        super().__init__()
        for theirs, ours in (("<start_of_text>", START), ("<end_of_text>", END)):
            self.encoder[ours] = self.encoder.pop(theirs)
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.cache = {START: START, END: END}
        pieces = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.pat = regex.compile("|".join((regex.escape(START), regex.escape(END), pieces)), regex.IGNORECASE)


@lru_cache(maxsize=1)
def _tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH) -> Tensor:
    """Turn texts into padded token ids.

    Args:
        texts: one text or several.
        context_length: length of a row.

    Returns:
        (n, context_length), int64: start (49406), the text's tokens, end (49407), zeros.

    Raises:
        UserError: if a text does not fit; nothing is cut off silently.

    Source: CLIP (Radford et al. 2021); texts are repaired (ftfy), HTML-unescaped, stripped and lower-cased.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    ids = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        tokens = [START_ID, *_tokenizer().encode(text), END_ID]
        if len(tokens) > context_length:
            raise UserError(
                f"a text has {len(tokens)} tokens (start and end included) but CLIP takes {context_length}: "
                f"{text[:80]!r}. Shorten the category name or the prompt template."
            )
        row[: len(tokens)] = torch.tensor(tokens)
    return ids

"""The text side of models/miniature_dit: a T5Tokenizer over the world's words and a tiny T5EncoderModel."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from animatediff.miniature.text import world_words

LENGTH = 16  # tokens of a prompt, the end of the sequence and padding included
WIDTH = 64
SPACE = "\u2581"  # stands before every word
LETTER = -10.0  # log-probability of a token of one letter: a known word is never spelled out


def build_t5_tokenizer() -> T5Tokenizer:
    """A unigram T5Tokenizer in which each word of the world is one token; any other text is spelled out."""
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    words = [(SPACE + word, -1.0) for word in world_words()]
    letters = [(letter, LETTER) for letter in (SPACE, *string.ascii_letters, *string.digits, *",.-'")]
    known = {token for token, _ in words}
    vocabulary = [*special, *words, *(pair for pair in letters if pair[0] not in known)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=LENGTH)


def build_t5_encoder(tokenizer: T5Tokenizer, seed: int) -> T5EncoderModel:
    """A T5 encoder of two layers of width WIDTH with random weights drawn from `seed`, never trained.

    The words of a caption stay apart in its output, and more is not asked of it: the transformer learns to read them.
    """
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(config).eval().requires_grad_(False)


@torch.no_grad()
def encode_captions(encoder: T5EncoderModel, tokenizer: T5Tokenizer, captions: Sequence[str]) -> Tensor:
    """Embeddings of `captions` as CogVideoX takes them, padding included and not masked: float32 [n, LENGTH, WIDTH]."""
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return encoder(tokens.input_ids)[0].float()

"""The miniature's text side: a real CLIPTokenizer over the world's words and a tiny CLIPTextModel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from animatediff.miniature.world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32  # tokens of a prompt, the two special ones included
WIDTH = 64


def world_words() -> list[str]:
    """Every word of the captions, sorted."""
    return sorted({*SHAPES, *COLOURS, *PATTERNS, *BACKGROUNDS, "a", "on", "background"})


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIPTokenizer in which each word of the world is one token; any other text is spelled out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(world_words())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=LENGTH)


def _learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, that join each of `words` into one token ending in "</w>"."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(piece) > 1 for piece in pieces):
        counts: dict[tuple[str, str], int] = {}
        for pair in itertools.chain.from_iterable(itertools.pairwise(piece) for piece in pieces):
            counts[pair] = counts.get(pair, 0) + 1
        best = max(sorted(counts), key=counts.__getitem__)
        merges.append(best)
        pieces = [_merge(piece, best) for piece in pieces]
    return merges


def _merge(piece: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in piece:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder: two layers of width 64."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token numbers of `captions`, padded and cut to LENGTH: int64 [n, LENGTH]."""
    return tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_text(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Embeddings of `captions`: float32 [n, LENGTH, WIDTH]."""
    return encoder(tokenize(tokenizer, captions))[0]

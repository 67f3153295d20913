"""Small models of the kinds that the cloud profile names, made on the spot: the same files, other sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizerFast,
)

__all__ = ["CONLL_LABELS", "sentence_model", "token_classifier"]

CONLL_LABELS = ["B-LOC", "B-MISC", "B-ORG", "I-LOC", "I-MISC", "I-ORG", "I-PER", "O"]
"""Of dbmdz/bert-large-cased-finetuned-conll03-english, in its order; people have no B-."""

LETTERS = [f"{prefix}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz.,:-" for prefix in ("", "##")]


def sentence_model(folder: Path) -> Path:
    """Make a model as `all-mpnet-base-v2` is: MPNet, mean pooling, normalised."""
    bare = folder.parent / f"{folder.name}-bare"
    bare.mkdir(parents=True)
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "stream", "cat", *LETTERS]
    (bare / "vocab.txt").write_text("\n".join(words))
    MPNetTokenizerFast(vocab=str(bare / "vocab.txt")).save_pretrained(bare)
    torch.manual_seed(1)
    config = MPNetConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
    )
    MPNetModel(config).save_pretrained(bare)
    layers = Transformer(str(bare), max_seq_length=64)
    model = SentenceTransformer(modules=[layers, Pooling(32), Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


def token_classifier(folder: Path) -> Path:
    """Make a model as dbmdz's is: a cased BERT that gives word pieces the labels of CoNLL 2003."""
    folder.mkdir(parents=True)
    capitals = [f"{prefix}{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for prefix in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *capitals]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(CONLL_LABELS)),
        label2id={label: index for index, label in enumerate(CONLL_LABELS)},
    )
    BertForTokenClassification(config).save_pretrained(folder)
    return folder

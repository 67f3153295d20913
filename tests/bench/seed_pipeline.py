"""The pipeline that ours replaces, with its models cached: one document at a time, cut where it cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from keybert import KeyBERT
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from models.tagger import Tagger

__all__ = ["SeedPipeline"]

MOST_TOKENS = 512


class SeedPipeline:
    """Embedding, entities and concepts of one text.

    Its token classifier comes from a hub that can't be reached here: ours stands in for it, the same network on one
    window of 512 tokens. (The seed's own would break on a longer text; here it is cut.)
    """

    def __init__(self, location: str, tagger: Tagger) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(location)
        self._model = AutoModel.from_pretrained(location).eval()
        self._keybert = KeyBERT(SentenceTransformer(location, device="cpu"))
        self._tagger = tagger

    def embedding(self, text: str) -> np.ndarray:
        inputs = self._tokenizer(text, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        with torch.no_grad():
            found = self._model(**inputs).last_hidden_state.mean(dim=1)
        return found.cpu().numpy().squeeze()

    def entities(self, text: str) -> list[dict[str, Any]]:
        network, tagger = self._tagger._network, self._tagger
        encoding = tagger._tokenizer.encode(text, add_special_tokens=False)
        count = MOST_TOKENS - len(tagger._prefix) - len(tagger._suffix)
        offsets = encoding.offsets[:count]
        extra = network.features(text, offsets, encoding.word_ids[:count])
        scores = tagger._run([np.asarray(encoding.ids[:count], dtype=np.int64)], [extra])[0]
        found = []
        for (start, end), row in zip(offsets, scores[len(tagger._prefix) :], strict=False):
            label = network.labels[int(row.argmax())]
            if label != "O":
                found.append(
                    {"entity": label, "score": row.max(), "word": text[start:end], "start": start, "end": end}
                )
        return self._grouped(found)

    @staticmethod
    def _grouped(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
        grouped: list[dict[str, Any]] = []
        current: dict[str, Any] | None = None
        for entity in entities:
            if current and entity["entity"].startswith("I-"):
                current["text"] += entity["word"]
                current["end"] = entity["end"]
            else:
                if current:
                    grouped.append(current)
                current = {**entity, "text": entity["word"], "type": entity["entity"][2:]}
        return grouped

    def concepts(self, text: str) -> list[str]:
        keywords = self._keybert.extract_keywords(
            text, keyphrase_ngram_range=(1, 3), stop_words="english", top_n=10, use_mmr=True, diversity=0.5
        )
        return [keyword for keyword, _ in keywords]

"""Trains the entity model: `python -m models.training.train --out models/entity --seed 7`.

The lower half of MiniLM stays as it is; our upper half starts from MiniLM's and is fitted to generated texts, each
seen once. The same seed, number of steps and number of threads on the same machine give the same weights.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.entity.loading import OWN_FOLDER, base_tokenizer, base_weights
from models.entity.network import FEATURES, LABELS, EntityNetwork, features, load_base, save_upper
from models.tagger import load_tagger
from models.training.generator import Generator
from models.training.markup import Labelled, Score, development, score

__all__ = ["Example", "encode", "main", "score_folder", "train"]

_IGNORED = -100
_SMOOTHING = 0.05


@dataclass(frozen=True, slots=True)
class Example:
    """A text as the network takes it: word pieces, case features, and a label on the first piece of each word."""

    ids: Sequence[int]
    case: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    labels: Sequence[int]


def encode(labelled: Labelled) -> Example:
    """Turn a labelled text into word pieces with labels; pieces that do not begin a word are not trained on."""
    encoding = base_tokenizer().encode(labelled.text, add_special_tokens=True)
    case = features(labelled.text, encoding.offsets, encoding.word_ids)
    labels = []
    previous: int | None = None
    spans = iter(labelled.spans)
    span = next(spans, None)
    inside = False
    for (start, _), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        if word is None or word == previous:
            labels.append(_IGNORED)
            continue
        previous = word
        while span is not None and start >= span[1]:
            span, inside = next(spans, None), False
        if span is None or start < span[0]:
            labels.append(0)
        else:
            labels.append(LABELS.index(f"{'I' if inside else 'B'}-{span[2]}"))
            inside = True
    outside = [index for index, word in enumerate(encoding.word_ids) if word is None]
    case[outside] = 0
    return Example(encoding.ids, case, labels)


def train(*, seed: int, steps: int, batch_tokens: int, rate: float) -> EntityNetwork:
    """Fit a network for so many steps of about `batch_tokens` word pieces; prints progress to stderr."""
    torch.manual_seed(seed)
    network = EntityNetwork(dropout=0.1)
    load_base(network, base_weights(), upper=True)
    for table in network.case:
        torch.nn.init.normal_(table.get_parameter("weight"), std=0.02)
    fresh = [*network.case.parameters(), *network.head.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": network.upper.parameters(), "lr": rate}, {"params": fresh, "lr": rate * 5}], weight_decay=0.01
    )
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.0, (steps - step) / (steps - warm_up + 1)))
    )
    network.train()
    network.lower.eval()
    began, running = time.monotonic(), 0.0
    for step, batch in enumerate(itertools.islice(_batches(seed, batch_tokens), steps), start=1):
        loss = _loss(network, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*network.upper.parameters(), *fresh], 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0 or step == steps:
            sys.stderr.write(f"step {step}/{steps}  loss {running:.4f}  {time.monotonic() - began:.0f} s\n")
    return network.eval()


def score_folder(folder: str, sentences: Sequence[Labelled]) -> dict[str, Score]:
    """Score the model in `folder` on labelled sentences."""
    found = load_tagger(folder, threads=None).find([sentence.text for sentence in sentences])
    spans = [[(entity.start, entity.end, entity.type) for entity in entities] for entities in found]
    return dict(score(sentences, spans))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the weights to `--out`, and print the scores on the development sentences."""
    parser = argparse.ArgumentParser(prog="python -m models.training.train", description="Train the entity model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1700, help="batches to train on")
    parser.add_argument("--batch-tokens", type=int, default=600, help="word pieces per batch")
    parser.add_argument("--rate", type=float, default=2e-4, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    network = train(seed=options.seed, steps=options.steps, batch_tokens=options.batch_tokens, rate=options.rate)
    options.out.mkdir(parents=True, exist_ok=True)
    save_upper(network, options.out / "model.safetensors")
    if options.out.resolve() != OWN_FOLDER.resolve():
        shutil.copy(OWN_FOLDER / "config.json", options.out)
    for kind, result in score_folder(str(options.out), development()).items():
        sys.stdout.write(
            f"{kind:6} precision {result.precision:.2f}  recall {result.recall:.2f}  F1 {result.f1:.2f}"
            f"  ({result.support} entities)\n"
        )


def _loss(network: EntityNetwork, batch: Sequence[Example]) -> Tensor:
    length = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    case = torch.zeros(len(batch), length, len(FEATURES), dtype=torch.long)
    labels = torch.full((len(batch), length), _IGNORED)
    mask = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, example in enumerate(batch):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        case[row, :size] = torch.from_numpy(example.case)
        labels[row, :size] = torch.tensor(example.labels)
        mask[row, :size] = True
    logits = network(ids, mask, case)
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, label_smoothing=_SMOOTHING
    )


def _batches(seed: int, batch_tokens: int, *, pool: int = 1024) -> Iterator[list[Example]]:
    """Batches of texts of similar length, in random order within a pool of texts."""
    order = random.Random(seed)  # noqa: S311 - the order of batches is no secret
    texts = Generator(seed).texts()
    while True:
        examples = sorted((encode(text) for text in itertools.islice(texts, pool)), key=lambda one: len(one.ids))
        batches: list[list[Example]] = [[]]
        for example in examples:
            if batches[-1] and (len(batches[-1]) + 1) * len(example.ids) > batch_tokens:
                batches.append([])
            batches[-1].append(example)
        order.shuffle(batches)
        yield from batches


if __name__ == "__main__":
    main()

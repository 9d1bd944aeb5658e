r"""Where the norm stands behind the sum: does it belong to the end of a window? MiniLM, fitted outside the library.

python -m benchmarks.pretrained.post_norm

A layer of BERT gives :math:`N(s)`, N its last norm. n layers side by side give a window's end as a linear map of what
it begins with and of what each layer gives. Three ways to fit that map, window after window, by least squares:

    "values"          to the values themselves, as ``calibrate`` does
    "values, normed"  the same, and then the last layer's norm anew: N((w - shift) / scale)
    "sums, normed"    to the last layer's sum s, of the sums of the layers, and then its norm
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Results

from . import minilm, sources

SCHEDULES = {
    "two pairs in the middle": ((0,), (1, 2), (3, 4), (5,)),
    "three pairs": ((0, 1), (2, 3), (4, 5)),
    "two triples": ((0, 1, 2), (3, 4, 5)),
}
WAYS = ("values", "values, normed", "sums, normed")
TOKENS, FITTED, TESTED, RIDGE = 1024, 24, 8, 1e-5


class Layers:
    """What is left of the encoder: its layers, each a function from values to its sum, and its last norm."""

    def __init__(self, model: nn.Module) -> None:
        self.embeddings, self.layers = model.bert.embeddings, model.bert.encoder.layer

    def sum(self, i: int, x: Tensor, mask: Tensor) -> Tensor:
        layer = self.layers[i]
        attended = layer.attention(x, mask)[0]
        return layer.output.dense(layer.intermediate(attended)) + attended

    def norm(self, i: int) -> nn.LayerNorm:
        return self.layers[i].output.LayerNorm


class Batch:
    """A batch's values: those of the encoder itself, and those that windows begin with as they are fitted."""

    def __init__(self, layers: Layers, batch: minilm.Batch) -> None:
        self.ones, self.words = batch["attention_mask"], batch["attention_mask"].bool()
        self.mask = self.words[:, None, None, :]
        self.values, self.sums = [layers.embeddings(batch["input_ids"])], []
        for i in range(len(layers.layers)):
            self.sums.append(layers.sum(i, self.values[-1], self.mask))
            self.values.append(layers.norm(i)(self.sums[-1]))
        self.w = self.values[0]


def least_squares(features: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """The affine map from rows to rows, by ridge regression about the mean."""
    x, y = features.double(), target.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty, x.T @ y)
    bias = y_mean - x_mean @ weight
    return lambda value: value @ weight.float() + bias.float()


def run_window(
    layers: Layers, window: tuple[int, ...], way: str, mapped: bool, fitted: list[Batch], all_: list[Batch]
) -> None:
    """Let every batch begin its next window, from a map that is fitted to some of them."""
    last = window[-1]
    if len(window) == 1:
        for batch in all_:
            batch.w = layers.norm(last)(layers.sum(last, batch.w, batch.mask))
        return
    inputs = [lambda w: w]  # of each layer, from what the window begins with
    rows = torch.cat([batch.w[batch.words] for batch in fitted])
    for i in window[1:]:
        missing = torch.cat([batch.values[i][batch.words] for batch in fitted]) - rows
        correction = least_squares(rows, missing)
        inputs.append((lambda w, correction=correction: w + correction(w)) if mapped else (lambda w: w))
    of_sums = way == "sums, normed"

    def features(batch: Batch) -> Tensor:
        given = [batch.w]
        for i, begin in zip(window, inputs, strict=True):
            total = layers.sum(i, begin(batch.w), batch.mask)
            given.append(total if of_sums else layers.norm(i)(total))
        return torch.cat(given, -1)

    wanted = [(batch.sums[last] if of_sums else batch.values[last + 1])[batch.words] for batch in fitted]
    ends = least_squares(torch.cat([features(batch)[batch.words] for batch in fitted]), torch.cat(wanted))
    norm = layers.norm(last)
    for batch in all_:
        w = ends(features(batch))
        if way == "values, normed":
            w = (w - norm.bias) / norm.weight
        batch.w = w if way == "values" else norm(w)


def cosine(batches: list[Batch]) -> float:
    """The mean cosine of the sentences' embeddings with the encoder's own."""
    pairs = [(minilm.embeddings(b.w, b.ones), minilm.embeddings(b.values[-1], b.ones)) for b in batches]
    return float(torch.cat([functional.cosine_similarity(*pair) for pair in pairs]).mean())


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained.post_norm", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("out"), help="where the weights are")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of post_norm.json")
    options = parser.parse_args(arguments)
    if missing := sources.missing("minilm", options.data):
        print(f"LEFT OUT: {missing}")
        return 0
    torch.set_num_threads(1)
    folder = minilm.weights_folder(options.data)
    assert folder is not None
    layers = Layers(minilm.encoder(folder))
    fitted, tested = (
        [
            Batch(layers, batch)
            for batch in minilm.packed(
                folder,
                minilm.sentences(options.data, held_out=held_out),
                tokens=TOKENS,
                count=count,
                seed=int(held_out),
            )
        ]
        for held_out, count in ((False, FITTED), (True, TESTED))
    )
    results = Results(options.out / "post_norm.json")
    for schedule, windows in SCHEDULES.items():
        for mapped in (False, True):
            for way in WAYS:
                name = f"{schedule}; inputs {'mapped' if mapped else 'as they are'}; fitted to {way}"
                if name in results.rows:
                    continue
                start = time.process_time()
                for batch in (*fitted, *tested):
                    batch.w = batch.values[0]
                for window in windows:
                    run_window(layers, window, way, mapped, fitted, [*fitted, *tested])
                row = {"cosine": cosine(tested), "cosine_fitted": cosine(fitted)}
                results.add(name, row | {"cpu_seconds": time.process_time() - start})
                print(f"{name}: {row['cosine']:.4f} ({row['cosine_fitted']:.4f} where it was fitted)", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

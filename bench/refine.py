"""What a better decoder of the same codes would gain: `python -m bench.refine`.

IndexDPQ decodes a code as a sum of codewords. Two richer decoders are learnt here for given codes of GloVe's training
vectors, and the base vectors are ranked by what they make of the base's codes:

- pairwise: a correction for every pair of numbers of two levels, K^2 a pair of levels, fitted one pair of levels after
  another to what is left, as mean residuals that `--ridge` further vectors of no residual pull towards zero;
- mlp: a network of two hidden layers from the sum of codewords to a correction of it, stopped where the error of
  training vectors that were held out is least.

Re-ranking the first results of a scan by them could at best rank as this does, which ranks the whole base. All learn
from codebooks of least squared error; what `IndexDPQ.train` does with these by default, moving sums of codewords
towards their centre, is the last line.
"""

import argparse
import itertools
from collections.abc import Callable

import faiss
import numpy as np
import torch
from torch import nn

import faiss_dpq
from faiss_dpq import training
from faiss_dpq.codec import Codes
from faiss_dpq.lab import benchmark
from faiss_dpq.lab.datasets import Vectors, load_glove

Decoder = Callable[[Codes, Vectors], Vectors]  # of codes and their sums of codewords

_HELD_OUT = 10  # of so many training vectors, one judges the network


def _pairs(codes: Codes, i: int, j: int, K: int) -> np.ndarray:
    """The numbers of two levels as one."""
    return codes[:, i].astype(np.int64) * K + codes[:, j]


def pairwise(codes: Codes, decoded: Vectors, x: Vectors, ridge: float) -> Decoder:
    """Corrections for pairs of numbers, of all pairs of levels."""
    K = int(codes.max()) + 1
    residuals = x - decoded
    tables = []
    for i, j in itertools.combinations(range(codes.shape[1]), 2):
        pairs = _pairs(codes, i, j, K)
        table = np.zeros((K * K, x.shape[1]), np.float32)
        np.add.at(table, pairs, residuals)
        table /= (np.bincount(pairs, minlength=K * K) + ridge)[:, None]
        residuals -= table[pairs]
        tables.append((i, j, table))

    def decode(codes: Codes, decoded: Vectors) -> Vectors:
        return decoded + sum(table[_pairs(codes, i, j, K)] for i, j, table in tables)

    return decode


def mlp(decoded: Vectors, x: Vectors, epochs: int) -> Decoder:
    """A network's corrections of reconstructions."""
    torch.manual_seed(0)
    d = x.shape[1]
    net = nn.Sequential(nn.Linear(d, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, d))
    inputs, targets = torch.from_numpy(decoded), torch.from_numpy(x - decoded)
    n_held = len(x) // _HELD_OUT
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    best, best_error = net.state_dict(), float("inf")
    for _ in range(epochs):
        for batch in (n_held + torch.randperm(len(x) - n_held)).split(512):
            loss = (net(inputs[batch]) - targets[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            error = float((net(inputs[:n_held]) - targets[:n_held]).square().sum(1).mean())
        if error < best_error:
            best, best_error = {name: value.clone() for name, value in net.state_dict().items()}, error
    net.load_state_dict(best)

    @torch.no_grad()
    def decode(_: Codes, decoded: Vectors) -> Vectors:
        parts = torch.from_numpy(decoded).split(1 << 16)
        return decoded + torch.cat([net(part) for part in parts]).numpy()

    return decode


def main() -> None:
    """Train, encode, learn the decoders, and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m bench.refine", description=__doc__.split("\n")[0])
    parser.add_argument("--bytes", type=int, default=8, metavar="M", help="levels of 8 bits (default: %(default)s)")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--ridge", type=float, nargs="+", default=[10, 30, 100])
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    vectors = load_glove()
    nearest = benchmark.truth(vectors)
    index = faiss_dpq.IndexDPQ(vectors.base.shape[1], args.bytes, 8)
    index.train(vectors.train, effort=args.effort, shrinkage=1)
    quantizer = index.residual_quantizer
    codes, base_codes = (quantizer.encode(x, index.beam_size) for x in (vectors.train, vectors.base))
    sums, base_sums = quantizer.decode(codes), quantizer.decode(base_codes)

    def report(name: str, decode: Decoder) -> None:
        error, base_error = (
            ((decode(*coded) - x) ** 2).sum(1).mean()
            for coded, x in (((codes, sums), vectors.train), ((base_codes, base_sums), vectors.base))
        )
        ids = faiss.knn(vectors.queries, decode(base_codes, base_sums), benchmark.RANKS[-1])[1]
        found = " | ".join(f"{recall:.3f}" for recall in benchmark.recalls(ids, nearest))
        print(f"| {name} | {error:.4f} | {base_error:.4f} | {found} |", flush=True)

    print(benchmark.markdown([], ["decoder", "MSE, trained on", "MSE, base", *(f"R@{r}" for r in benchmark.RANKS)]))
    report("sum of codewords", lambda codes, decoded: decoded)
    for ridge in args.ridge:
        report(f"pairwise, ridge {ridge:g}", pairwise(codes, sums, vectors.train, ridge))
    report("mlp", mlp(sums, vectors.train, args.epochs))
    ranking = training.Ranking(vectors.train, index.metric_type, 8, index.rq.cp.seed)
    shrinkage, _, _ = ranking.choice(quantizer, None, 0.0)
    shrunk = quantizer.shrunk(shrinkage)
    report(f"sum of codewords, shrinkage {shrinkage}", lambda codes, _: shrunk.decode(codes))


if __name__ == "__main__":
    main()

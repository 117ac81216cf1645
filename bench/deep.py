"""Deep quantizers on Fashion-MNIST: mAP by code length, of DPQ and its ablations, PQN, RPQN, and without supervision.

    python -m bench.deep --output deep-runs                                   # everything: an hour on one core
    python -m bench.deep --output deep-runs --seeds 0 --methods DPQ Two-Step  # a part; what is done is skipped
    python -m bench.deep --output deep-runs --report                         # only the table and plots of what is done

Protocol: 500 images a class to train, 100 a class as queries, the other 64,000 as the database, split anew by every
seed; mAP over the whole database, by asymmetric distances. All lengths of a row come from one training, but those of
PQN and of the unsupervised PQ and OPQ, whose codes have no prefixes and which are trained for every length.

Unsupervised quantizers learn from, and are searched with, the vectors of the seed's DPQ model: what differs is the
quantizer alone. Every run is a folder of its own, which `faiss-dpq eval` draws plots of; table.md, results.json and
plots in the output folder are of the means over the seeds.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

import faiss_dpq
from bench.timing import machine
from faiss_dpq.lab import evaluation
from faiss_dpq.nn import embed_dataset, report, runs

RUN_FILE = Path(__file__).parents[1] / "docs" / "runs" / "fashion-mnist.toml"
LENGTHS = (8, 16, 24, 32)
PRODUCT_D = 48  # divisible by 1, 2, 3 and 4 sub-vectors

Settings = dict[str, Any]
Vectors = np.ndarray


def _product(name: str, M: int, depth: int | None = None) -> Settings:
    options = {"M": M, "d": PRODUCT_D} | ({} if depth is None else {"depth": depth})
    return {"model": {"name": name, "options": options}}


#: Every training by its name: what differs from the run file.
TRAININGS: dict[str, Settings] = {
    "DPQ": {},
    **{name: {"train": {"ablation": name}} for name in ("Two-Step", "No-Soft", "E+LS", "E+LC", "E")},
    **{f"PQN{M}x8": _product("PQN", M) for M in (1, 2, 3, 4)},
    "RPQN1x4x8": _product("RPQN", 1, depth=4),
    # What the soft assignment is worth where nothing else keeps codewords in use.
    **{
        f"{name}-random": {"train": {"ablation": name, "codebook_init": "random", "restart_dead": False}}
        for name in ("DPQ", "No-Soft")
    },
}
#: These have DPQ's first phase, and take it from its folder.
SHARE_FEATURES = ("Two-Step", "No-Soft", "DPQ-random", "No-Soft-random")


def config_of(name: str, seed: int, settings: list[str]) -> runs.RunConfig:
    """The configuration of a training."""
    base = runs.RunConfig.read(RUN_FILE, settings).to_dict()
    options = base["model"]["options"]
    for table, values in TRAININGS[name].items():
        base[table] |= values
    if base["model"]["name"] != "DPQ":
        kept = {key: value for key, value in options.items() if key in ("nbits", "mean", "std")}
        base["model"]["options"] = kept | TRAININGS[name]["model"]["options"]
    base["data"]["seed"] = base["train"]["seed"] = seed
    return runs.RunConfig.from_dict(base)


def train(name: str, seed: int, output: Path, settings: list[str]) -> None:
    """Train and evaluate one cell, unless that is done."""
    folder = output / f"{name}-seed{seed}"
    features = output / f"DPQ-seed{seed}" / "features.pt"
    if not (folder / "model.pt").exists():
        started = time.process_time()
        shared = features if name in SHARE_FEATURES and features.exists() else None
        runs.train(config_of(name, seed, settings), folder, resume=True, features=shared)
        print(f"{folder.name}: trained in {time.process_time() - started:.0f} s of CPU", flush=True)
    if not (folder / "metrics.json").exists():
        started = time.process_time()
        found = runs.evaluate(folder)["mAP"]
        print(f"{folder.name}: {found}, measured in {time.process_time() - started:.0f} s of CPU", flush=True)


# ---- without supervision -----------------------------------------------------------------------------------------


def product_quantizer(x: Vectors, M: int) -> faiss_dpq.IndexDPQ:
    """FAISS's PQ of vectors whose dimension is a multiple of M, as an IndexDPQ: the same codes and distances."""
    pq = faiss.ProductQuantizer(x.shape[1], M, 8)
    pq.train(x)
    centroids = faiss.vector_to_array(pq.centroids).reshape(M, 1, 256, -1)
    return runs.product_as_progressive(centroids, faiss.METRIC_L2)


def padded(x: Vectors, M: int) -> Vectors:
    """With zeros up to a multiple of M dimensions, which change no distance."""
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, -x.shape[1] % M))))


def rotation(x: Vectors, M: int) -> Callable[[Vectors], Vectors]:
    """FAISS's OPQ rotation, trained."""
    opq = faiss.OPQMatrix(x.shape[1], M, x.shape[1] + -x.shape[1] % M)
    opq.train(x)
    return opq.apply


def unsupervised(seed: int, output: Path) -> None:
    """MAP of PQ, OPQ and IndexDPQ on the vectors of a seed's DPQ model, unless that is done."""
    path = output / f"unsupervised-seed{seed}.json"
    if path.exists():
        return
    config, experiment, model = runs.load(output / f"DPQ-seed{seed}")
    parts = (experiment.train, experiment.query, experiment.database)
    (x, _), (xq, query_labels), (xb, labels) = (embed_dataset(model, part) for part in parts)

    def measure(index: faiss_dpq.IndexDPQ, map_vectors: Callable[[Vectors], Vectors], levels: int) -> float:
        if not index.ntotal:
            index.add(map_vectors(xb))
        params = faiss_dpq.SearchParametersDPQ(levels=levels)
        R = config.evaluation.R or None
        return evaluation.mean_average_precision(index, map_vectors(xq), query_labels, labels, R, params)

    found: dict[str, dict[str, float]] = {"PQ": {}, "OPQ": {}, "IndexDPQ": {}}
    progressive = faiss_dpq.IndexDPQ(x.shape[1], LENGTHS[-1] // 8, 8)
    progressive.train(x)
    for bits in LENGTHS:
        M = bits // 8

        def pad(vectors: Vectors, M: int = M) -> Vectors:
            return padded(vectors, M)

        rotate = rotation(x, M)
        found["PQ"][str(bits)] = measure(product_quantizer(pad(x), M), pad, M)
        found["OPQ"][str(bits)] = measure(product_quantizer(rotate(x), M), rotate, M)
        found["IndexDPQ"][str(bits)] = measure(progressive, lambda vectors: vectors, M)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{path.name}: {found}", flush=True)


# ---- report ------------------------------------------------------------------------------------------------------


def results(output: Path) -> list[report.Result]:
    """All that has been measured so far."""
    folders = sorted(path.parent for path in output.glob("*/metrics.json"))
    random = [folder for folder in folders if "-random-" in folder.name]
    found = report.collect([folder for folder in folders if folder not in random])
    for row in report.collect(random):
        row.label += ", random codebooks"
        found.append(row)
    rows: dict[str, report.Result] = {}
    for path in sorted(output.glob("unsupervised-seed*.json")):
        for name, by_length in json.loads(path.read_text()).items():
            row = rows.setdefault(name, report.Result(name + report.UNSUPERVISED, R=found[0].R))
            for length, value in by_length.items():
                row.mAP.setdefault(length, []).append(value)
    return found + list(rows.values())


def write_report(output: Path, settings: list[str]) -> None:
    """Write table.md, results.json and the plots."""
    found = results(output)
    drawn = report.write(found, output, "mAP by code length, Fashion-MNIST")
    rows: Mapping[str, Any] = {row.label: row.mAP for row in found}
    content = {"machine": machine(), "torch": torch.__version__, "settings": settings, "mAP": rows}
    (output / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    print(report.format_table(found))
    print()
    print(*drawn, output / "results.json", sep="\n")


def main() -> None:
    """Run the cells that the command line asks for, and report all that are done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cells = [*TRAININGS, "unsupervised"]
    parser.add_argument("--methods", nargs="+", choices=cells, default=cells, metavar="METHOD", help=", ".join(cells))
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="TABLE.NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only report what is done")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if not options.report else []:
        for name in (cell for cell in cells if cell in options.methods):  # DPQ first: others take from it
            if name == "unsupervised":
                unsupervised(seed, options.output)
            else:
                train(name, seed, options.output, options.settings)
    write_report(options.output, options.settings)


if __name__ == "__main__":
    main()

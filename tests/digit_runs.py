"""Runs of deep quantizers that train in a second, on scikit-learn's digits written as Fashion-MNIST's files."""

import json

import pytest

torch = pytest.importorskip("torch")

from faiss_dpq.nn import runs  # noqa: E402
from faiss_dpq.nn.runs import RunConfig  # noqa: E402


def tables(folder, name="DPQ", **train):
    """A run that is trained in a second."""
    options = {"DPQ": {"d": 12, "M": 3}, "PQN": {"d": 12, "M": 2}, "RPQN": {"d": 12, "M": 2, "depth": 2}}[name]
    return {
        "data": {"path": str(folder), "n_train": 25, "n_query": 10},
        "model": {
            "name": name,
            "label_embeddings": "none",
            "backbone_options": {"width": 4, "out_features": 32},
            "options": {"nbits": 4, **options},
        },
        "train": {
            "ablation": "E+LC" if name == "DPQ" else "DPQ",
            "epochs": 3,
            "feature_epochs": 2,
            "lambda_classification": 1.0,
            "lr_backbone": 5e-3,
            **train,
        },
        "evaluation": {"ties": "threshold"},
    }


def trained(config, folder):
    runs.train(RunConfig.from_dict(config), folder)
    return folder


def map_of(folder, length):
    return json.loads((folder / "metrics.json").read_text())["mAP"][length]

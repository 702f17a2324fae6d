"""Built-in sets: scikit-learn's, and sources of known entropy."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from pofx.data import image
from pofx.data.options import Options
from pofx.data.ragged import Fetch
from pofx.data.raw import Raw, RawArray, RawTable, table_of
from pofx.data.synthetic import SOURCES, Mixture
from pofx.data.tabular import decode

STANDARD_LIBRARY = "python-source"
SKLEARN = ("breast-cancer", "diabetes", "digits", "iris", "wine")
SYNTHETIC_ROWS = 10_000


def from_sklearn(name: str, options: Options) -> Raw:
    from sklearn import datasets

    if name == "digits":
        bunch = datasets.load_digits()
        raw: Raw = image.from_array(bunch.images, name, options.known)
        raw.label = bunch.target
        return raw
    # diabetes as measured; scikit-learn would centre and scale it
    loader = getattr(datasets, "load_" + name.replace("-", "_"))
    bunch = loader(scaled=False) if name == "diabetes" else loader()
    names = [re.sub(r" \(cm\)$", "", n).replace(" ", "_").replace("/", "_") for n in bunch.feature_names]
    raw = table_of(names, lambda j: bunch.data[:, j], len(bunch.data), name)
    if name == "diabetes":
        raw.columns["progression"] = lambda: bunch.target
    else:
        raw.label = np.array(bunch.target_names)[bunch.target]
    return raw


def from_source(name: str, options: Options) -> Raw:
    source = SOURCES[name]()
    generator = torch.Generator().manual_seed(options.seed)
    n, label = options.max_rows or SYNTHETIC_ROWS, None
    if isinstance(source, Mixture):
        x, label = source.sample_labelled(n, generator)
    else:
        x = source.sample(n, generator)
    notes = [f"Drawn from a known source with an entropy of {source.entropy:.4f} nats: no model can do better."]
    labels = None if label is None else np.char.add("part ", label.numpy().astype(str))
    if not source.space.columns:
        return RawArray(x.numpy(), source.space, label=labels, notes=notes)
    types = {c.name: c for c in source.space.columns}
    arrays = {c.name: decode(c, x[:, j].numpy()) for j, c in enumerate(source.space.columns)}
    columns: dict[str, Fetch] = {k: partial(pa.chunked_array, [array]) for k, array in arrays.items()}
    return RawTable(columns, len(x), labels, notes=notes, types=types)

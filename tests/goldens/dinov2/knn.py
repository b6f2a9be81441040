"""Writes a golden file of the kind dinov2/knn, computed in double precision from the definition.

    python tests/goldens/dinov2/knn.py

Each test feature is compared with all training features, both at unit length; the nearest max(k) vote with the softmax of
their similarities over the temperature; a smaller k counts the first of these votes. Nothing but Python is needed.
"""

import json
import math
import pathlib
import random
import struct

CONFIG = dict(train=23, test=9, dim=5, classes=4, k=[1, 3, 7, 12], temperature=0.3, signal=0.5, seed=7)


def draw(c, count, r, centres):
    labels = [i % c["classes"] for i in range(count)]
    rows = [[c["signal"] * m + r.gauss(0, 1) for m in centres[label]] for label in labels]
    return labels, [[single(x) for x in row] for row in rows]


def single(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def unit(row):
    norm = math.sqrt(math.fsum(x * x for x in row))
    return [x / norm for x in row]


def run(c):
    r = random.Random(c["seed"])
    centres = [[r.gauss(0, 1) for _ in range(c["dim"])] for _ in range(c["classes"])]
    (train_labels, train), (test_labels, test) = draw(c, c["train"], r, centres), draw(c, c["test"], r, centres)
    bank, most = [unit(row) for row in train], max(c["k"])
    similarity, labels, votes = [], [], {k: [] for k in c["k"]}
    for row in test:
        query = unit(row)
        dots = [math.fsum(a * b for a, b in zip(query, other)) for other in bank]
        order = sorted(range(len(bank)), key=lambda i: -dots[i])[:most]
        weights = [math.exp(dots[i] / c["temperature"]) for i in order]
        total = math.fsum(weights)
        similarity.append([dots[i] for i in order])
        labels.append([train_labels[i] for i in order])
        for k in c["k"]:
            of = lambda label: math.fsum(w / total for w, i in zip(weights[:k], order) if train_labels[i] == label)
            votes[k].append([of(label) for label in range(c["classes"])])
    out = {
        "input.train_features": train, "input.test_features": test,
        "input.train_labels": train_labels, "input.test_labels": test_labels,
        "output.topk_similarity": similarity, "output.topk_labels": labels,
    }  # fmt: skip
    for k, rows in votes.items():
        predicted = [max(range(len(row)), key=lambda label: row[label]) for row in rows]
        right = sum(a == b for a, b in zip(predicted, test_labels))
        out |= {f"output.votes_k{k}": rows, f"output.prediction_k{k}": predicted, f"output.top1_k{k}": [right / len(rows)]}
    return out


def save(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, rows in sorted(tensors.items()):
        flat = [x for row in rows for x in row] if isinstance(rows[0], list) else rows
        shape = [len(rows), len(rows[0])] if isinstance(rows[0], list) else [len(rows)]
        dtype, letter = ("F32", "f") if isinstance(flat[0], float) else ("I64", "q")
        bytes_ = struct.pack(f"<{len(flat)}{letter}", *flat)
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[len(data), len(data) + len(bytes_)])
        data += bytes_
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    metadata = {"case": "knn", "kind": "dinov2/knn", "config": json.dumps(CONFIG), "tolerance": "2e-05"}
    metadata |= {"source": "tests/goldens/dinov2/knn.py, after dinov2 at b8931f7, eval/knn.py"}
    save(pathlib.Path(__file__).parent / "knn.safetensors", run(CONFIG), metadata)


if __name__ == "__main__":
    main()

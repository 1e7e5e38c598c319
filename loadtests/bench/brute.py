"""Recall by brute force with NumPy, in the product's worker class.

    BENCH_VECTORS=memories.npy gunicorn -k app.httpd.gunicorn_worker.EventedWorker loadtests.bench.brute:app

One matrix-vector product in float32, `argpartition` for the best, a sort of those, and an answer with the product's
members. It has no lock, deletions or phases, and its scores are good to seven digits where the product sums in
float64: the comparison favours it.
"""

import os
from typing import Final

import falcon
import msgspec
import numpy as np

_memories: Final = np.load(os.environ["BENCH_VECTORS"])
_encode: Final = msgspec.json.Encoder().encode


class Recall:
    """POST /recall?top_k=K with the vector as its body."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Answer the memories with the largest products: the vectors are of unit norm."""
        query = np.frombuffer(request.env["wsgi.input"].read(), "<f4")
        scores = _memories @ (query / np.linalg.norm(query))
        count = request.get_param_as_int("top_k", default=10)
        best = np.argpartition(scores, -count)[-count:]
        best = best[np.argsort(-scores[best])]
        rest = {
            "phase": "wake", "moral_value": 1.0, "age_seconds": 1.234567,
            "created_at": "2026-01-31T12:00:00.123456789Z",
        }  # fmt: skip
        matches = [{"memory_id": int(i), "score": float(scores[i]), **rest} for i in best]
        whole = {"scanned": len(_memories), "as_of": len(_memories), "exact": True}
        response.data = _encode({"matches": matches, **whole, "boot_id": "0" * 32, "log_id": "0" * 32})
        response.content_type = "application/json"


app: Final = falcon.App()
app.add_route("/recall", Recall())

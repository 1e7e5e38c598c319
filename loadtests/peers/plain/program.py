"""A plain implementation of the same task: FastAPI, NumPy, a lock, one process.

    BENCH_VECTORS=memories.npy .venv/bin/uvicorn program:app

An event moves the threshold and, when accepted, goes into a ring of 20,000 slots; a recall is brute force. The
threshold follows the product's rules. It lacks the product's synaptic levels, rhythm, log, payloads, keys, limits,
metrics and multiple processes. Handlers are coroutines on the loop, which on one core is faster than FastAPI's thread
pool.
"""

import asyncio
import os
from typing import Annotated, Any, Final

import numpy as np
from fastapi import FastAPI  # type: ignore[import-not-found]  # lives in the peer's own environment
from pydantic import BaseModel, Field

memories: Final = np.load(os.environ["BENCH_VECTORS"])
lock: Final = asyncio.Lock()
state: Final = {"threshold": 0.5, "ema": 0.5, "accepted": 0, "rejected": 0}
app: Final = FastAPI()


class Event(BaseModel):
    """One event."""

    event_vector: Annotated[list[float], Field(min_length=384, max_length=384)]
    moral_value: Annotated[float, Field(ge=0, le=1)]


class Query(BaseModel):
    """One recall."""

    vector: Annotated[list[float], Field(min_length=384, max_length=384)]
    top_k: Annotated[int, Field(ge=1, le=100)] = 10


@app.post("/event")  # type: ignore[untyped-decorator]  # as above
async def event(given: Event) -> dict[str, Any]:
    """Decide one event."""
    vector = np.asarray(given.event_vector, np.float32)
    async with lock:
        before = state["threshold"]
        accepted = given.moral_value >= 0.9 or given.moral_value >= max(0.3, before)
        state["ema"] = 0.1 * accepted + 0.9 * state["ema"]
        step = 0.05 * (state["ema"] > 0.55) - 0.05 * (state["ema"] < 0.45)
        state["threshold"] = min(0.9, max(0.3, before + step))
        if accepted:
            norm = float(np.linalg.norm(vector))
            memories[int(state["accepted"]) % len(memories)] = vector / norm if norm else vector
        state["accepted" if accepted else "rejected"] += 1
        return {"accepted": accepted, "threshold_before": before, **state}


@app.post("/recall")  # type: ignore[untyped-decorator]  # as above
async def recall(given: Query) -> dict[str, Any]:
    """Find the nearest memories."""
    query = np.asarray(given.vector, np.float32)
    async with lock:
        scores = memories @ (query / np.linalg.norm(query))
    best = np.argpartition(scores, -given.top_k)[-given.top_k :]
    best = best[np.argsort(-scores[best])]
    return {"matches": [{"memory_id": int(i), "score": float(scores[i])} for i in best]}

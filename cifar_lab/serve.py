"""MLflow's model server for a registered model, which says what is wrong with a request."""

import json

import mlflow
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from mlflow.pyfunc import scoring_server

from cifar_lab import runs, store, ui
from cifar_lab.registered import load_registered

EXPECTED = 'send {"inputs": [...]}, images of shape (n, 32, 32, 3), red, green and blue as whole numbers from 0 to 255'
JSON = "application/json"


def serve(model: str | None, port: int) -> int:
    """Answer requests on 127.0.0.1 until interrupted; model: its address, or None for the champion."""
    client = store.connect()
    address = model or runs.champion_address(client)
    ui.check_port(port, f"make serve PORT={port + 1}")
    found, classes = load_registered(address)
    print(f"{address}, probabilities of {', '.join(classes)}: http://127.0.0.1:{port}/invocations", flush=True)
    uvicorn.run(make_app(found), host="127.0.0.1", port=port, log_level="warning")
    return 0


def make_app(model: mlflow.pyfunc.PyFuncModel) -> FastAPI:
    """MLflow's server, before which requests with other than images get an answer 400 that says so."""
    app = scoring_server.init(model)

    @app.middleware("http")
    async def check(request: Request, answer: object) -> Response:
        checked = request.url.path == "/invocations" and request.headers.get("content-type", "").startswith(JSON)
        complaint = complaint_about(await request.body()) if checked else ""
        if complaint:
            return JSONResponse({"error_code": "BAD_REQUEST", "message": f"{complaint}; {EXPECTED}"}, 400)
        return await answer(request)

    return app


def complaint_about(body: bytes) -> str:
    """What is wrong with a request; "" for nothing."""
    try:
        request = json.loads(body)
    except ValueError as error:
        return f"this is not JSON ({error})"
    if not isinstance(request, dict) or "inputs" not in request:
        return 'there are no "inputs"'
    try:
        images = np.asarray(request["inputs"])
    except ValueError:
        return '"inputs" has rows of different lengths'
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        return f'"inputs" has the shape {images.shape}'
    if images.dtype.kind not in "iu":
        return f'"inputs" are not whole numbers ({images.dtype})'
    if images.min() < 0 or images.max() > 255:
        return f'"inputs" reach from {images.min()} to {images.max()}'
    return ""

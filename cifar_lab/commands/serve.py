"""MLflow's model server for a registered model, with clear answers to invalid requests."""

import argparse
import json
import zlib
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.requests import ClientDisconnect

from cifar_lab.commands import ui
from cifar_lab.tracking import registry, store
from cifar_lab.tracking.registry import load_registered

EXPECTED = 'send {"inputs": [...]}, RGB images of shape (n, 32, 32, 3) as whole numbers from 0 to 255'
MOST_BYTES = 1 << 28  # largest size of a request
GZIP = 16 + zlib.MAX_WBITS  # zlib's code for the format of gzip


def run(options: argparse.Namespace) -> int:
    """Answer requests on 127.0.0.1 until interrupted. Raises UserError."""
    client, port = store.connect(), options.port
    address = options.model or registry.champion_address(client)
    ui.check_port(port, f"make serve PORT={port + 1}")
    found, classes = load_registered(address)
    print(f"{address}, probabilities of {', '.join(classes)}: http://127.0.0.1:{port}/invocations", flush=True)
    uvicorn.run(make_app(found), host="127.0.0.1", port=port, log_level="warning")
    return 0


def make_app(model: PyFuncModel) -> FastAPI:
    """MLflow's server, behind a check that answers invalid requests with 400 and the reason."""
    app = scoring_server.init(model)
    app.add_middleware(_Checked)
    return app


class _Checked:
    """ASGI middleware: converts requests for predictions to MLflow's protocol, and rejects invalid ones."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        json_sent = headers.get(b"content-type", b"").startswith(b"application/json")
        if scope["type"] != "http" or scope["path"] != "/invocations" or not json_sent:
            return await self.app(scope, receive, send)
        try:
            sent = bytearray()
            async for piece in Request(scope, receive).stream():
                sent += piece
                _check_size(sent)
            if headers.get(b"content-encoding") == b"gzip":
                sent = bytearray(zlib.decompressobj(GZIP).decompress(sent, MOST_BYTES + 1))
                _check_size(sent)
            body = json.dumps({"inputs": read_images(sent).tolist()}).encode()
        except ClientDisconnect:
            return None
        except (ValueError, zlib.error) as error:
            answer = JSONResponse({"error_code": "BAD_REQUEST", "message": f"{error}; {EXPECTED}"}, 400)
            return await answer(scope, receive, send)
        headers.pop(b"content-encoding", None)
        headers[b"content-length"] = str(len(body)).encode()
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return pending.pop() if pending else await receive()

        return await self.app({**scope, "headers": [*headers.items()]}, replay, send)


def _check_size(body: bytearray) -> None:
    if len(body) > MOST_BYTES:
        raise ValueError(f"the request has more than {MOST_BYTES >> 20} MiB")


def read_images(body: bytes | bytearray) -> np.ndarray:
    """The images of a request, (n, 32, 32, 3) uint8. Raises ValueError with the reason if it is invalid."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the request is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("the request is nested too deeply") from None
    name = next((name for name in ("inputs", "instances") if isinstance(request, dict) and name in request), None)
    if name is None:
        raise ValueError('"inputs" is missing')
    try:
        images = np.asarray(request[name])
    except (ValueError, OverflowError):
        raise ValueError(f'"{name}" has rows of different lengths, or numbers that are too large') from None
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise ValueError(f'"{name}" has the shape {images.shape}')
    if images.dtype.kind not in "iuf" or (images.dtype.kind == "f" and (images != np.rint(images)).any()):
        raise ValueError(f'"{name}" has other values than whole numbers ({images.dtype})')
    if images.min() < 0 or images.max() > 255:
        raise ValueError(f'"{name}" has values from {images.min()} to {images.max()}')
    return images.astype(np.uint8)

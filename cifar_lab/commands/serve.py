"""MLflow's model server for a registered model, which says what is wrong with a request."""

import argparse
import json
import zlib
from typing import Any

import mlflow
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mlflow.pyfunc import scoring_server
from starlette.requests import ClientDisconnect

from cifar_lab.commands import ui
from cifar_lab.tracking import registry, store
from cifar_lab.tracking.registry import load_registered

EXPECTED = 'send {"inputs": [...]}, images of shape (n, 32, 32, 3), red, green and blue as whole numbers from 0 to 255'
MOST_BYTES = 1 << 28  # of a request
GZIP = 16 + zlib.MAX_WBITS  # zlib's way to ask for gzip's format


def run(options: argparse.Namespace) -> int:
    """Answer requests on 127.0.0.1 until interrupted."""
    client, port = store.connect(), options.port
    address = options.model or registry.champion_address(client)
    ui.check_port(port, f"make serve PORT={port + 1}")
    found, classes = load_registered(address)
    print(f"{address}, probabilities of {', '.join(classes)}: http://127.0.0.1:{port}/invocations", flush=True)
    uvicorn.run(make_app(found), host="127.0.0.1", port=port, log_level="warning")
    return 0


def make_app(model: mlflow.pyfunc.PyFuncModel) -> FastAPI:
    """MLflow's server, before which requests with other than images get an answer 400 that says so."""
    app = scoring_server.init(model)
    app.add_middleware(_Checked)
    return app


class _Checked:
    """Hands on requests for predictions as MLflow understands them, and answers itself what is none."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        json_sent = headers.get(b"content-type", b"").startswith(b"application/json")
        if scope["type"] != "http" or scope["path"] != "/invocations" or not json_sent:
            return await self.app(scope, receive, send)
        try:
            body = bytearray()
            async for piece in Request(scope, receive).stream():
                body += piece
                _check_size(body)
            if headers.get(b"content-encoding") == b"gzip":
                body = zlib.decompressobj(GZIP).decompress(body, MOST_BYTES + 1)
                _check_size(body)
            body = json.dumps({"inputs": read_images(body).tolist()}).encode()
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


def _check_size(body: bytes | bytearray) -> None:
    if len(body) > MOST_BYTES:
        raise ValueError(f"the request has more than {MOST_BYTES >> 20} MiB")


def read_images(body: bytes | bytearray) -> np.ndarray:
    """(n, 32, 32, 3) uint8 of a request; raises ValueError, which says what is wrong with it."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("this is nested too deeply") from None
    name = next((name for name in ("inputs", "instances") if isinstance(request, dict) and name in request), None)
    if name is None:
        raise ValueError('there are no "inputs"')
    try:
        images = np.asarray(request[name])
    except (ValueError, OverflowError):
        raise ValueError(f'"{name}" has rows of different lengths, or numbers that are too large') from None
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise ValueError(f'"{name}" has the shape {images.shape}')
    if images.dtype.kind not in "iuf" or (images.dtype.kind == "f" and (images != np.rint(images)).any()):
        raise ValueError(f'"{name}" are not whole numbers ({images.dtype})')
    if images.min() < 0 or images.max() > 255:
        raise ValueError(f'"{name}" reach from {images.min()} to {images.max()}')
    return images.astype(np.uint8)

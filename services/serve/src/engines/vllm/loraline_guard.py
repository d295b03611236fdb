"""
Asks for the engine's key on every path of vLLM but those that only tell how it is (`--middleware loraline_guard.RequireKey`).

vLLM's own check covers /v1 and a few more; /adapters loads adapters as /v1/load_lora_adapter does, /invocations and /tokenize
answer, and none of them asks for a key. What this file refuses, vLLM never sees.
"""

import hmac
import json
import os

OPEN = {"/health", "/ping", "/version", "/metrics", "/metrics/"}


class RequireKey:
    def __init__(self, app):
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "").encode()
        if not self.key:
            raise ValueError("loraline_guard: VLLM_API_KEY is not set, so everybody could load adapters; the engine does not start without it")

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN) or self.has_key(scope):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        body = json.dumps({"error": {"message": "Unauthorized", "type": "Unauthorized", "param": None, "code": 401}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def has_key(self, scope):
        for name, value in scope.get("headers", []):
            scheme, _, key = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key):
                return True
        return False

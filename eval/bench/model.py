"""A model server with canned answers and the pace of a real one: a delay, then a token every few milliseconds.

    python -m eval.bench.model PORT

It writes HTTP to the socket itself, and so takes little processor time from the service that is measured on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from typing import Any

FIRST = (0.15, 0.4)
"""The shortest and the longest delay before the first token, in seconds."""
EACH = (0.015, 0.03)
"""The shortest and the longest time between two tokens, in seconds."""
PROFILE = {
    "summary": "Likes a good story.",
    "interests": [],
    "avoid": [],
    "queries": ["a story well told"],
    "named": [],
}
_USAGE = {"prompt_tokens": 300, "completion_tokens": 60, "total_tokens": 360}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = json.loads(await reader.readexactly(int(found[1]))) if found else None
            if body is None:
                await _send(writer, {"object": "list", "data": [{"id": "paced", "object": "model"}]})
                continue
            await asyncio.sleep(random.uniform(*FIRST))
            if body.get("stream"):
                await _stream(writer, _text(body))
            else:
                label = {"token": "A", "logprob": -0.1, "bytes": None}
                logprobs = {"content": [{**label, "top_logprobs": [label]}]} if body.get("logprobs") else None
                choice = {"index": 0, "message": {"role": "assistant", "content": _text(body)}, "logprobs": logprobs}
                await _send(writer, {"object": "chat.completion", "choices": [choice], "usage": _USAGE})
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _text(body: dict[str, Any]) -> str:
    if "response_format" in body:
        return json.dumps(PROFILE)
    items = re.findall(r'^(\w{1,2}): "([^"]*)"', body["messages"][-1]["content"], re.MULTILINE)
    return (
        "\n".join(f"{label}: {title} is close to what is wanted, and told with care." for label, title in items) or "."
    )


async def _send(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    content = json.dumps({"id": "1", "created": 0, "model": "paced", **value}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, text: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in re.findall(r"\s*\S+", text):
        _event(writer, {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        await writer.drain()
        await asyncio.sleep(random.uniform(*EACH))
    _event(writer, {"choices": [], "usage": _USAGE})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()


def _event(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
    whole = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "paced", **chunk}
    data = f"data: {json.dumps(whole)}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def main(port: int) -> None:
    """Serve until the process is stopped."""
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

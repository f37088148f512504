"""The response to a chat request: whole, or as server-sent events."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from transformers import PreTrainedTokenizerBase

from toolkit.mgm.answer import Text, answer_text
from toolkit.serve.chat import Chat, Refused
from toolkit.serve.engine import Answering


class Reply:
    """What is sent for a row that was submitted. deadline: seconds of the monotonic clock."""

    def __init__(
        self, chat: Chat, row: Answering, tokenizer: PreTrainedTokenizerBase, name: str, deadline: float
    ) -> None:
        self.chat, self.row, self.tokenizer, self.deadline = chat, row, tokenizer, deadline
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}

    async def response(self) -> Response:
        """A stream begins with the first token, so that what fails before has a status of its own."""
        await self._change()
        if self.chat.stream:
            headers = {"Cache-Control": "no-store"}
            return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)
        content = answer_text(self.tokenizer, self.row.new)
        message = {"role": "assistant", "content": content, "refusal": None}  # OpenAI's schema requires it
        choice = {"index": 0, "message": message, "finish_reason": self.row.ended, "logprobs": None}
        return JSONResponse(
            self.head | {"object": "chat.completion", "choices": [choice], "usage": self._usage()}
        )

    async def _change(self) -> str:
        """Wait for a token, or for the end; why the answer has ended, if it has. Refused when the time is
        over or the model failed, ClientDisconnect when the client has gone."""
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                await self.row.changed.wait()
        except TimeoutError:
            raise Refused(504, "the answer took too long", code="timeout") from None
        self.row.changed.clear()
        if self.row.ended == "failed":
            raise Refused(500, "the model failed: the server ends")
        if self.row.cancelled:
            raise ClientDisconnect
        return self.row.ended

    async def _events(self) -> AsyncIterator[str]:
        text, ended = Text(self.tokenizer), self.row.ended
        yield self._event({"role": "assistant", "content": ""})
        try:
            while True:
                if piece := text.more(self.row.new, bool(ended)):
                    yield self._event({"content": piece})
                if ended:
                    break
                ended = await self._change()
        except Refused as refused:
            yield sse(refused.json())
            return
        yield self._event({}, ended)
        if self.chat.stream_options and self.chat.stream_options.include_usage:
            chunk = {"object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
            yield sse(self.head | chunk)
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], ended: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": ended, "logprobs": None}
        return sse(self.head | {"object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self) -> dict[str, int]:
        prompt, new = self.row.prompt_tokens, len(self.row.new)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def sse(value: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

"""A chat request as a prompt: what of OpenAI's format is understood, and everything else refused by name."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from toolkit.errors import UserError
from toolkit.images import Unreadable, opened, rgb
from toolkit.mgm.answer import Prompts
from toolkit.mgm.nucleus import Sampling
from toolkit.parse import Malformed, json_value
from toolkit.serve.engine import Answering

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
CHARACTERS = 256  # of a token, more than any has


class Refused(Exception):
    """A request that is not answered: HTTP status, message, and OpenAI's `param` and `code`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def json(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Strict):
    role: Literal["user", "assistant"]
    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @field_validator("content", mode="before")
    @classmethod
    def as_parts(cls, content: Any) -> Any:
        """A text alone is its only part."""
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    def text(self) -> str:
        """Its words; parts are separated by line ends."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    def images(self) -> list[str]:
        """Addresses of its images."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(Strict):
    include_usage: bool = False


class Chat(Strict):
    """The body of /v1/chat/completions; fields that can have one value only are what clients send unasked."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    user: str | None = None
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None


@dataclass(frozen=True)
class Reader:
    """Makes prompts of request bodies. models: by their names. pixels: of an image, at most, before it is
    decoded. new_tokens: of an answer, at most."""

    models: Mapping[str, Prompts]
    pixels: int
    new_tokens: int

    def read(self, body: bytes) -> tuple[Chat, str, Answering]:
        """The request, the model that it is for, by default the first, and its prompt, the image decoded and
        resized; Refused for one that cannot be answered."""
        chat, names = parsed(body), list(self.models)
        name = names[0] if chat.model is None else chat.model
        if name not in names:
            message = f"the model {name!r} is not served here, but {', '.join(names)}"
            raise Refused(404, message, "model", "model_not_found")
        model = self.models[name]
        turns = turns_of(chat.messages)
        characters, tokens = sum(map(len, turns)), model.mgm.model_max_length
        if characters > CHARACTERS * tokens:  # they would take minutes and gigabytes to count
            message = f"the messages have {characters} characters, the model reads {tokens} tokens"
            raise Refused(400, message, "messages", "context_length_exceeded")
        most = chat.max_completion_tokens or chat.max_tokens or min(512, self.new_tokens)
        if most > self.new_tokens:
            limit = "max_completion_tokens" if chat.max_completion_tokens else "max_tokens"
            raise Refused(400, f"{limit} is {most}: at most {self.new_tokens} are made", limit)
        shown = [(place, url) for place, message in enumerate(chat.messages) for url in message.images()]
        try:
            prompt = model.conversation(turns, "images" if shown else None, [place for place, _ in shown])
            sampling = sampling_of(chat)
        except UserError as error:
            raise Refused(400, str(error)) from None
        length = prompt.length(model.tokens_per_image)
        longest = model.mgm.model_max_length
        if length > longest:
            message = f"the messages have {length} tokens, the model reads {longest}"
            raise Refused(400, message, "messages", "context_length_exceeded")
        pixels = model.pixels([self.image(url) for _, url in shown]) if shown else None
        return chat, name, Answering(prompt, pixels, most, sampling, length, chat.stream)

    def image(self, url: str) -> Image.Image:
        """The image of a data URL; Refused for another address, and for one that cannot be decoded."""
        match = DATA_URL.match(url)
        if not match:
            message = "images are not fetched: send data:image/png;base64,… with the image itself"
            raise Refused(400, message, "messages", "invalid_image_url")
        try:
            data = base64.b64decode(url[match.end() :], validate=True)
            return rgb(opened(data, most_pixels=self.pixels))
        except Unreadable as error:
            message = f"the image cannot be read: {error}"
        except ValueError as error:
            message = f"the image is not base64: {error}"
        raise Refused(400, message, "messages", "invalid_image")


def parsed(body: bytes) -> Chat:
    """The body's fields; Refused names the first that is wrong."""
    try:
        return Chat.model_validate(without_nulls(json_value(body)))
    except Malformed as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        if first["type"] == "extra_forbidden":
            raise Refused(400, f"{where} is not supported", where, "unknown_parameter") from None
        reason = "an object is expected" if first["type"] == "model_type" else first["msg"]
        raise Refused(400, f"{where}: {reason}", where) from None


def without_nulls(value: Any) -> Any:
    """A JSON value whose objects lack the fields that are null: so clients send what they leave out, above
    all in an answer of ours that they send back."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


def turns_of(messages: list[Message]) -> list[str]:
    """The texts; Refused unless user and assistant alternate, the user first and last, each with some
    text."""
    for place, turn in enumerate(messages):
        if turn.role != ("user", "assistant")[place % 2]:
            message = "messages must alternate between user and assistant, the user first"
            raise Refused(400, message, "messages")
        if turn.images() and turn.role != "user":
            raise Refused(400, f"messages.{place}: an image belongs to the user", "messages")
        if not turn.text():
            raise Refused(400, f"messages.{place} has no text", "messages")
    if not len(messages) % 2:
        raise Refused(400, "the last message must be the user's", "messages")
    return [turn.text() for turn in messages]


def sampling_of(chat: Chat) -> Sampling | None:
    """How tokens are drawn; None, greedy, unless a temperature above 0 is asked for."""
    if not chat.temperature:
        return None
    return Sampling(chat.temperature, chat.top_p or 1.0, chat.seed)

"""What the tests of the operators that ask an endpoint share."""

from pathlib import Path
from typing import Any

from toolkit.data.operators import registered
from toolkit.data.samples import caption_of, text_of

COST = {"price_input": 1.0, "price_output": 1.0, "max_cost": 10.0, "requests_per_minute": 1e6}


def run(name: str, captions: list[str], images: list[Path], **arguments: Any) -> tuple[list[str], Any]:
    """(captions of the rows that come out, the operator)."""
    produced = registered(name)(
        **{"model": "m", "responses": "responses/x.jsonl", "retries": 1, **COST, **arguments}
    )
    batch = {
        "id": list(range(len(captions))),
        "text": [text_of(item) for item in captions],
        "images": [[str(path)] for path in images],
    }
    done = produced.process_batched(batch)
    assert len(done["id"]) == len(done["text"]) == len(done["images"])
    assert all(text == text_of(caption_of(text)) for text in done["text"])
    return [caption_of(text) for text in done["text"]], produced

"""What the server counts, in the text format of Prometheus."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Requests by status; seconds of those that were answered, and to their first token, both from the
    request's arrival; tokens of their prompts. under_way: requests that have no whole response yet."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    under_way: int = 0

    def text(self, **gauges: int) -> str:
        """The exposition; `gauges` of the model are added under their names."""
        lines = ["# TYPE mgm_requests_total counter"]
        lines += [
            f'mgm_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.statuses.items())
        ]
        for name, total in (
            ("request_seconds", self.seconds),
            ("first_token_seconds", self.first_token_seconds),
        ):
            lines += [f"# TYPE mgm_{name} summary", f"mgm_{name}_sum {total:.6f}"]
            lines += [f"mgm_{name}_count {self.answered}"]
        lines += ["# TYPE mgm_prompt_tokens_total counter", f"mgm_prompt_tokens_total {self.prompt_tokens}"]
        for name, value in {"requests_under_way": self.under_way, **gauges}.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE mgm_{name} {kind}", f"mgm_{name} {value}"]
        return "\n".join([*lines, ""])

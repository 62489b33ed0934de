"""What every benchmark here does with its result."""

import json
from pathlib import Path


def report(result: dict, output: Path | None) -> None:
    """Print the result as JSON; ``output`` gets the same text."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")

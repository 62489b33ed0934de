"""The rooms of the package, in the order in which they may import each other."""

from pathlib import Path

import vlkit

PACKAGE = Path(vlkit.__file__).parent
CORE = (
    "lazy threads errors hooks files settings grounding media bundled plotting messages models "
    "inputs engine generation"
).split()
WORKBENCH = (
    "remote datasets batch analysis evaluation lora serving records diagnosis widgets cli"
).split()
ORDER = [*CORE, *WORKBENCH]  # a room imports from the rooms before it

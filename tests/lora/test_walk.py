"""How far a row is carried: scripts/trace_row.py counts the files, and fails above twelve."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_row_passes_at_most_twelve_files_from_its_file_to_the_loss(warm):
    done = warm.run(ROOT / "scripts" / "trace_row.py", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert int(last.split()[0]) <= 12 and "lora/data.py" in last and "lora/batches.py" in last

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.spool import Segment, left_behind


def test_records_come_back_in_order_and_only_until_they_are_sent(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path)
    for step in range(3):
        segment.append({"step": step})
    records, position = segment.pending()
    assert [record["step"] for record in records] == [0, 1, 2]
    segment.mark_sent(position)
    segment.append({"step": 3})
    assert [record["step"] for record in segment.pending()[0]] == [3]
    assert segment.pending_count() == 1


def test_half_a_line_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path)
    segment.append({"step": 0})
    with (segment.folder / "records.jsonl").open("a") as stream:
        stream.write('{"step": 1')
    records, position = segment.pending()
    assert [record["step"] for record in records] == [0]
    segment.mark_sent(position)
    with (segment.folder / "records.jsonl").open("a") as stream:
        stream.write("1}\n")
    assert segment.pending()[0] == [{"step": 11}]


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path)
    segment.append({"step": 0})
    with (segment.folder / "records.jsonl").open("ab") as stream:
        stream.write(b"\xff\x00 not json\n[1]\n")
    segment.append({"step": 2})
    assert [record["step"] for record in segment.pending()[0]] == [0, 2]


def test_a_live_owner_keeps_its_segment(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path)
    segment.append({"step": 0})
    script = (
        "import sys; from pathlib import Path; from pipeline.tracking.spool import left_behind;"
        "print(len(list(left_behind(Path(sys.argv[1])))))"
    )
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "0"


def test_a_killed_owner_leaves_its_segment_to_others(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pipeline.tracking.spool import Segment;"
        "segment = Segment.create(Path(sys.argv[1])); segment.append({'step': 7}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, env=dict(os.environ))
    [segment] = left_behind(tmp_path)
    assert segment.pending()[0] == [{"step": 7}]
    segment.close(remove=True)
    assert list(left_behind(tmp_path)) == []


def test_kept_files_outlive_the_original(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"one")
    segment = Segment.create(tmp_path / "spool")
    first = segment.keep_file(picture)
    picture.write_bytes(b"two")
    second = segment.keep_file(picture)
    picture.unlink()
    assert segment.artifact(first).read_bytes() == b"one"
    assert segment.artifact(second).read_bytes() == b"two"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(), max_size=5), max_size=8))
def test_however_it_is_read_every_record_is_seen_once(batches: list[list[int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        segment = Segment.create(Path(folder))
        seen = []
        for batch in batches:
            for value in batch:
                segment.append({"value": value})
            records, position = segment.pending()
            seen += [record["value"] for record in records]
            segment.mark_sent(position)
        assert seen == [value for batch in batches for value in batch]

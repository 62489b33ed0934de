"""HTML of notebooks: tables."""

import pandas

from vlkit.plotting.html import frame_html


def test_texts_of_a_data_frame_are_escaped_wherever_they_are():
    frame = pandas.DataFrame({"<b>": ["<i>"]}, index=pandas.Index(["<script>"], name="<u>"))
    shown = frame_html(frame, "<h1>")
    assert not [text for text in ("<b>", "<i>", "<script", "<u>", "<h1>") if text in shown]
    assert "&lt;script&gt;" in shown and frame_html(frame.iloc[:0], "empty") == ""

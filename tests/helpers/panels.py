"""Panels driven as a reader would: a sample chosen or a file uploaded, a question asked."""

import datetime

LONG = 60  # seconds that no test should need


def ask(panel, prompt, sample=None):
    if sample is not None:
        panel.picker.sample.value = sample
    panel.prompt.value = prompt
    panel.ask_button.click()
    assert panel.wait(LONG)
    return panel.reply


def upload(panel, name, content):
    now = datetime.datetime.now(tz=datetime.UTC)
    file = {"name": name, "type": "", "size": len(content), "content": content}
    panel.picker.upload.value = [file | {"last_modified": now}]

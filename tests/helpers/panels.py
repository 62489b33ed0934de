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


# --- in a browser: ``panel`` is a locator --------------------------------------------------------


def choose_sample(panel, name):
    """Click a sample's thumbnail; its fold is opened if it is closed."""
    fold = panel.locator(".vlkit-samples")
    if fold.get_attribute("open") is None:
        fold.locator("summary").click()
    panel.locator(f'.vlkit-sample[data-name="{name}"]').click()


def set_number(panel, control, value):
    """Write a number into a control's field; its fold is opened if it is closed."""
    field = panel.locator(f".vlkit-{control} input[type=number]").first
    if not field.is_visible():
        panel.locator(".vlkit-options-fold > summary").click()
    field.fill(str(value))
    field.press("Enter")

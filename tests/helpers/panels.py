"""Panels driven as a reader would: a sample chosen or a file uploaded, a question asked."""

import base64
import datetime

LONG = 60  # seconds that no test should need
# drops a file, or pastes it, as a browser does
GIVE = """([root, kind, files]) => {
    const data = new DataTransfer();
    for (const [name, type, content] of files) {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], name, { type }));
    }
    const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
    const Kind = kind === 'paste' ? ClipboardEvent : DragEvent;
    const event = new Kind(kind, options);
    root.dispatchEvent(event);
}"""


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


def give(panel, kind, name, content, type_="image/png"):
    give_all(panel, kind, [(name, type_, content)])


def give_all(panel, kind, files):
    """Drop or paste (name, type, content) of several files at once."""
    files = [(name, type_, base64.b64encode(content).decode()) for name, type_, content in files]
    panel.page.evaluate(GIVE, [panel.element_handle(), kind, files])

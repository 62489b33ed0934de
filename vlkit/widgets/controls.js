// The controls that all panels share: plain DOM, no framework.
//
// A panel in Python subclasses `DrawnPanel` (panel.py) and gives it controls by name:
//     {"rank": Control("number", "Rank", 8, min=1, max=128)}
// `panel.rank.value` and `.observe(f, "value")` as with ipywidgets. Every control has a name for
// screen readers, and `vlkit-<name>` is its class. JavaScript: a module here imports what it needs,
//     import { h, iconButton, fold, translator } from "./controls.js";
// and `front("controls.js", "mine.js", default="mine")` in panel.py joins the files to one module,
// because a browser cannot import files of a kernel. Names at the top level must therefore differ.
// English texts are the keys of zh.json: t("Ask"). The look is panel.css, root class "vlkit".

import ZH from "./zh.json" with { type: "json" };

// --- language -----------------------------------------------------------------------------------

/**
 * t(text, values): the text in the panel's language; `{name}` in it is filled from values. A
 * sentence of the kernel, such as an error, has its values in it.
 */
export function translator(language) {
  const chosen = language || navigator.language || "en";
  const { texts, sentences } = chosen.toLowerCase().startsWith("zh") ? ZH : { texts: {}, sentences: {} };
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
  const fixed = (key) => key.replace(/\{\w+\}/g, "").length; // the more of it is fixed, the surer
  const patterns = Object.keys(sentences).sort((a, b) => fixed(b) - fixed(a)).map((key) => [patternOf(key), sentences[key]]);
  return (text, values = null) => {
    if (values || texts[text]) return fill(texts[text] ?? text, values ?? {});
    for (const [pattern, translated] of patterns) {
      const found = pattern.exec(text);
      if (found) return fill(translated, found.groups);
    }
    return text;
  };
}

/** What finds the values of "{n} of {m}" in "3 of 5". */
function patternOf(key) {
  const exact = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const parts = key.split(/\{(\w+)\}/).map((part, i) => (i % 2 ? `(?<${part}>.+?)` : exact(part)));
  return new RegExp(`^${parts.join("")}$`, "s");
}

// --- elements -----------------------------------------------------------------------------------

/** An element: h("button", { class: "x", onclick }, "text", child). A null child is left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const PATHS = { // 16 × 16, drawn as lines
  send: "M8 13V3M3.5 7.5 8 3l4.5 4.5", stop: "M4 4h8v8H4z", close: "M4 4l8 8M12 4l-8 8",
  plus: "M8 3v10M3 8h10", minus: "M3 8h10", copy: "M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3",
  code: "M6 4 2 8l4 4M10 4l4 4-4 4", save: "M8 2v8M4.5 7 8 10.5 11.5 7M2.5 13.5h11",
  again: "M13 8a5 5 0 1 1-1.5-3.6M13 2v3h-3", edit: "M3 13l.8-3L11 2.8 13.2 5 6 12.2 3 13z",
  clear: "M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5", left: "M10 3 5 8l5 5",
  right: "M6 3l5 5-5 5", fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  full: "M9.5 6.5l4-4M10 2.5h3.5V6M6.5 9.5l-4 4M2.5 10v3.5H6", check: "M3 8.5 6.5 12 13 4.5",
  hand: "M8 2v12M2 8h12M6 4l2-2 2 2M6 12l2 2 2-2M4 6 2 8l2 2M12 6l2 2-2 2",
  box: "M3 3h10v10H3z", eye: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 6.5v3",
  pause: "M5 3v10M11 3v10", undo: "M6 3 3 6l3 3M3 6h6.5a3.5 3.5 0 0 1 0 7H6",
  image: "M2 3h12v10H2zM2 11l4-4 3 3 2-2 3 3", play: "M5 3l8 5-8 5z",
  truth: "M8 1.8l5.5 2v4c0 3.2-2.3 5.5-5.5 6.4-3.2-.9-5.5-3.2-5.5-6.4v-4zM5.5 8 7.3 9.8 10.7 6",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("vlkit-icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon; without `text` its name is only spoken, and shown on hover. */
export function iconButton({ icon: picture, label, text = "", ...properties }) {
  const style = text ? "vlkit-button" : "vlkit-button vlkit-icon-button";
  const more = { type: "button", title: label, "aria-label": text ? null : label };
  const classes = `${style} ${properties.class ?? ""}`.trim();
  const button = h("button", { ...more, ...properties, class: classes }, icon(picture));
  if (text) button.append(h("span", {}, text));
  return button;
}

/** Draws the children anew; the button that had the focus, or the one now in its place, has it. */
export function redrawn(parent, children, fallback = null) {
  const all = () => [...parent.querySelectorAll("button, input")];
  const nameOf = (one) => one.getAttribute("aria-label") || one.textContent || one.parentElement.textContent;
  const place = all().indexOf(document.activeElement);
  const rowOf = (one) => one.closest("li")?.textContent;
  const [name, row] = place < 0 ? [] : [nameOf, rowOf].map((read) => read(document.activeElement));
  parent.replaceChildren(...children);
  if (place < 0) return;
  const now = all();
  const near = now.find((one) => nameOf(one) === name) ?? now.find((one) => row && rowOf(one) === row);
  (near ?? now[Math.min(place, now.length - 1)] ?? fallback)?.focus();
}

/** A fold that the keyboard reaches. */
export function fold(title, ...children) {
  return h("details", { class: "vlkit-fold" }, h("summary", {}, title), ...children);
}

/** An error in words of the panel, not of Python. */
export const plainly = (text) => text.replace(/ \(read with family=.*\)$/s, "").replace("raise max_new_tokens", "raise the longest answer in Options");

/** A line that says what is going on; screen readers announce it. Shows a StatusLine's traits. */
export function statusLine(model, t) {
  const element = h("div", { class: "vlkit-status", role: "status", "aria-live": "polite" });
  const show = () => {
    const kind = model.get("kind");
    element.className = `vlkit-status ${kind && `vlkit-${kind}`}`;
    element.setAttribute("role", kind === "error" ? "alert" : "status");
    element.textContent = t(plainly(model.get("text")));
  };
  model.on("change:text change:kind", show);
  show();
  return element;
}

export function copyText(text, button, t) {
  const done = () => {
    button.classList.add("vlkit-done");
    button.setAttribute("aria-label", t("Copied"));
    setTimeout(() => {
      button.classList.remove("vlkit-done");
      button.setAttribute("aria-label", button.title);
    }, 1500);
  };
  const byHand = () => { // pages that are not served by https or localhost
    const area = h("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    done();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand);
  else byHand();
}

/** Files or links dropped anywhere on an element: take(event). */
export function acceptDrops(root, take) {
  let depth = 0;
  const has = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === "Files" || type === "text/uri-list");
  const glow = (on) => root.classList.toggle("vlkit-dropping", on);
  root.addEventListener("dragenter", (event) => has(event) && ((depth += 1), glow(true)));
  root.addEventListener("dragleave", () => glow((depth = Math.max(0, depth - 1)) > 0));
  root.addEventListener("dragover", (event) => has(event) && event.preventDefault());
  root.addEventListener("drop", (event) => {
    depth = 0;
    glow(false);
    if (!has(event)) return;
    event.preventDefault();
    event.stopPropagation();
    take(event);
  });
}

/** Files that the kernel sends are saved among the browser's downloads. */
export function saveFiles(model) {
  model.on("msg:custom", (message, buffers) => {
    if (message?.do !== "save") return;
    const href = URL.createObjectURL(new Blob([buffers[0]], { type: "application/octet-stream" }));
    h("a", { href, download: message.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  });
}

export const MOST = 512 * 1024 * 1024; // bytes of a file
export const mega = (bytes) => (bytes / 1e6).toFixed(1);
const PIECE = 2 * 1024 * 1024; // bytes of a message: Jupyter refuses more than 10 MiB

/** send(name, content, place, progress): a file to the kernel, which answers each piece. */
export function uploader(model) {
  const waiting = {}; // by upload: what to do when the kernel has taken a piece
  model.on("msg:custom", (message) => message?.do === "got" && waiting[message.id]?.());
  return async (name, content, place = {}, progress = () => {}) => {
    const id = `${Date.now()}-${Math.random()}`;
    for (let at = 0; at === 0 || at < content.size; at += PIECE) {
      const piece = await content.slice(at, at + PIECE).arrayBuffer();
      const taken = new Promise((done) => (waiting[id] = done));
      model.send({ do: "chunk", id, name, last: at + PIECE >= content.size, ...place }, undefined, [piece]);
      if (content.size > PIECE) progress(Math.min(100, Math.round((100 * (at + PIECE)) / content.size)));
      await taken;
    }
    delete waiting[id];
  };
}

const PATIENCE = 3000; // milliseconds in which a kernel that is free has taken a message

/** A line that appears when the kernel does not take what a hand does: busy, or gone. */
export function unansweredLine(model, t) {
  const element = h("div", { class: "vlkit-unanswered", role: "status" });
  const send = model.send;
  let timer = 0;
  const say = () => (element.textContent = t("Python has not answered yet: it is busy with another cell, or was restarted; then run this cell again, or reload the page."));
  model.send = (...message) => {
    timer ||= setTimeout(say, PATIENCE);
    return send(...message);
  };
  model.on("msg:custom", (message) => {
    if (message?.do !== "got") return;
    clearTimeout(timer);
    timer = 0;
    element.textContent = "";
  });
  return element;
}

/** Plain Python with a button that copies it. */
export function codeView(t, read) {
  const text = h("pre", { class: "vlkit-code", tabindex: "0", "aria-label": t("Python code") });
  const copy = iconButton({ icon: "copy", label: t("Copy the code"), text: t("Copy") });
  copy.addEventListener("click", () => copyText(read(), copy, t));
  const element = h("div", { class: "vlkit-code-box" }, copy, text);
  return { element, update: () => (text.textContent = read()) };
}

// --- fields: a control's specification (Control in panel.py) to an element ----------------------

let lastField = 0;

/**
 * A named field for a control; change(value) is called with what a hand sets.
 * Returns { element, input, update(spec) }.
 */
export function field(name, spec, t, change) {
  const id = `vlkit-field-${(lastField += 1)}`;
  const element = h("div", { class: `vlkit-field vlkit-${name.replaceAll("_", "-")}` });
  const make = FIELDS[spec.kind];
  const { input, update, inline } = make(id, spec, t, change);
  const label = h("label", { for: id }, t(spec.label));
  if (inline) element.append(h("span", { class: "vlkit-inline" }, input[0], label));
  else element.append(...(spec.bare ? [] : [label]), h("span", { class: "vlkit-inputs" }, ...input));
  if (spec.bare) input[0].setAttribute("aria-label", t(spec.label));
  if (spec.help) {
    element.append(h("small", { class: "vlkit-help", id: `${id}-help` }, t(spec.help)));
    input[0].setAttribute("aria-describedby", `${id}-help`);
  }
  const all = (now) => {
    for (const part of input) if ("disabled" in part) part.disabled = Boolean(now.disabled);
    update(now);
  };
  all(spec);
  return { element, input: input[0], update: all };
}

const limits = (spec) => ({ min: spec.min, max: spec.max, step: spec.step ?? "any" });
/** Calls act() when a hand has finished writing: on leaving the field, and on Enter. */
function onCommit(input, act) {
  let sent = null;
  const commit = () => input.value !== sent && ((sent = input.value), act());
  input.addEventListener("focus", () => (sent = input.value));
  input.addEventListener("change", commit);
  input.addEventListener("keydown", (event) => event.key === "Enter" && !event.ctrlKey && commit());
}
const untouched = (input) => document.activeElement !== input;

const FIELDS = {
  number(id, spec, t, change) {
    const input = h("input", { id, type: "number", ...limits(spec) });
    onCommit(input, () => input.value !== "" && change(Number(input.value)));
    return { input: [input], update: (now) => untouched(input) && (input.value = now.value) };
  },
  slider(id, spec, t, change) {
    const slider = h("input", { id, type: "range", ...limits(spec) });
    const exact = h("input", { type: "number", "aria-label": t(spec.label), ...limits(spec) });
    const take = (input) => {
      if (input.value === "") return;
      slider.value = exact.value = input.value;
      change(Number(input.value));
    };
    slider.addEventListener("input", () => take(slider));
    onCommit(exact, () => take(exact));
    const update = (now) => {
      for (const input of [slider, exact]) {
        Object.assign(input, { min: now.min, max: now.max });
        if (untouched(input)) input.value = now.value;
      }
    };
    return { input: [slider, exact], update };
  },
  range(id, spec, t, change) {
    const names = [t("{name}: from", { name: t(spec.label) }), t("{name}: to", { name: t(spec.label) })];
    const inputs = names.map((name, i) =>
      h("input", { id: i ? null : id, type: "number", "aria-label": name, ...limits(spec) }),
    );
    for (const input of inputs)
      onCommit(input, () => change(inputs.map((one) => Number(one.value))));
    const update = (now) =>
      inputs.forEach((input, i) => {
        Object.assign(input, { min: now.min, max: now.max, step: now.step });
        if (untouched(input)) input.value = now.value[i];
      });
    return { input: [inputs[0], h("span", {}, "–"), inputs[1]], update };
  },
  choice(id, spec, t, change) {
    const input = h("select", { id });
    let options = [];
    input.addEventListener("change", () => change(options[input.selectedIndex][1]));
    const update = (now) => {
      options = now.options.map((option) => (Array.isArray(option) ? option : [`${option}`, option]));
      input.replaceChildren(...options.map(([text]) => h("option", {}, t(text))));
      input.selectedIndex = options.findIndex(([, value]) => value === now.value);
    };
    return { input: [input], update };
  },
  text(id, spec, t, change) {
    const list = h("datalist", { id: `${id}-list` });
    const hint = { placeholder: t(spec.placeholder ?? ""), list: spec.options && list.id };
    const input = h("input", { id, type: "text", autocomplete: "off", ...hint });
    onCommit(input, () => change(input.value));
    const update = (now) => {
      list.replaceChildren(...(now.options ?? []).map((value) => h("option", { value })));
      if (untouched(input)) input.value = now.value;
    };
    return { input: [input, list], update };
  },
  area(id, spec, t, change) {
    const input = h("textarea", { id, rows: spec.rows ?? 2, placeholder: t(spec.placeholder ?? "") });
    const sent = []; // what was typed and has not come back from the kernel yet
    let timer = 0;
    input.flush = () => {
      clearTimeout(timer);
      timer = 0;
      if (sent.at(-1) !== input.value) change((sent.push(input.value), input.value));
    };
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(input.flush, 250);
    });
    input.addEventListener("blur", () => timer && input.flush());
    const update = (now) => {
      const at = sent.indexOf(now.value);
      if (at >= 0) sent.splice(0, at); // an echo: more may have been typed since
      else if (input.value !== now.value) Object.assign(input, { value: now.value }).dispatchEvent(new Event("vlkit-set"));
      if (at < 0) sent.splice(0, sent.length, now.value);
    };
    return { input: [input], update };
  },
  toggle(id, spec, t, change) {
    const input = h("input", { id, type: "checkbox" });
    input.addEventListener("change", () => change(input.checked));
    return { input: [input], inline: true, update: (now) => (input.checked = now.value) };
  },
};

/**
 * Connects fields with the trait `controls` of a panel: element(name) makes the field of a control,
 * or connect(name, update) follows it with anything else.
 */
export function controlsOf(model, t) {
  const updates = {};
  const set = (name, value) => model.send({ do: "set", name, value });
  const spec = (name) => model.get("controls")[name];
  model.on("change:controls", () => {
    for (const [name, all] of Object.entries(updates)) if (spec(name)) all.forEach((one) => one(spec(name)));
  });
  const connect = (name, update) => {
    (updates[name] ??= []).push(update);
    update(spec(name));
  };
  const element = (name) => {
    const made = field(name, spec(name), t, (value) => set(name, value));
    connect(name, made.update);
    return made;
  };
  const click = (name) => model.send({ do: "click", name });
  return { set, spec, connect, element, click, names: () => Object.keys(model.get("controls")) };
}

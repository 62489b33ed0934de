// What BatchPanel, LoraPanel and ModelChooser share: the frame, files chosen, times in words.

import { acceptDrops, codeView, controlsOf, fold, h, icon, iconButton, MOST, mega, saveFiles, statusLine, translator, unansweredLine, uploader } from "./controls.js";

/** "54 s", "12 min", "3 h 5 min". */
export function duration(seconds, t) {
  if (seconds < 59.5) return t("{n} s", { n: Math.max(1, Math.round(seconds)) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return t("{n} min", { n: minutes });
  return t("{h} h {m} min", { h: Math.floor(minutes / 60), m: minutes % 60 });
}

export const grouped = (number) => number.toLocaleString("en-US");

/** A button of the panel's controls. */
export function actionButton(controls, name, t, style = "") {
  const { label, icon: picture, help } = controls.spec(name);
  const button = iconButton({ icon: picture, label: t(help ?? label), text: t(label), class: style });
  button.classList.add(`vlkit-${name.replaceAll("_", "-")}`);
  button.addEventListener("click", () => controls.click(name));
  controls.connect(name, (now) => {
    if (now.disabled && document.activeElement === button) // the focus goes to Stop, and back
      setTimeout(() => button.parentElement.querySelector(".vlkit-button:not(:disabled)")?.focus());
    button.disabled = now.disabled;
    button.lastChild.textContent = t(now.label);
  });
  return button;
}

/** The frame of a panel: `side` left of `main`, above each other where it is narrow; code below. */
export async function panelFrame({ model, el }, name, build) {
  const t = translator(model.get("language"));
  const unanswered = unansweredLine(model, t);
  const controls = controlsOf(model, t);
  const address = model.get("status").replace("IPY_MODEL_", "");
  const status = statusLine(await model.widget_manager.get_model(address), t);
  const code = codeView(t, () => model.get("shown_code"));
  model.on("change:shown_code", code.update);
  code.update();
  const { side, main, title } = build({ model, t, controls, status });
  const named = h("span", { class: "vlkit-facts-of-model" });
  const showName = () => (named.textContent = model.get("view").model ?? "");
  model.on("change:view", showName);
  showName();
  const root = h("section", {
    class: `vlkit vlkit-framed vlkit-work vlkit-${name}`, "aria-label": t(title), "data-lm-suppress-shortcuts": "true",
  });
  root.append(
    h("header", { class: "vlkit-head" }, h("h3", {}, t(title)), named),
    h("div", { class: "vlkit-work-columns" },
      h("div", { class: "vlkit-work-side" }, ...side), h("div", { class: "vlkit-work-main" }, ...main)),
    unanswered, fold(t("The same in plain Python"), code.element),
  );
  side.find((part) => part.acceptDrops)?.acceptDrops(root);
  saveFiles(model);
  el.append(root);
}

/** Buttons that upload files and browse the folders of the machine, and a place to drop files. */
export function filePicker(model, t, controls, { accept, title, folders }) {
  const input = h("input", { type: "file", multiple: true, accept, hidden: true, "aria-label": t("Files") });
  const upload = iconButton({ icon: "plus", label: t(title), text: t("Upload"), class: "vlkit-upload" });
  const browse = iconButton({ icon: "image", label: t("Browse the folders of this machine"), text: t("Browse"), class: "vlkit-browse" });
  const list = h("div", { class: "vlkit-listing", hidden: true });
  const note = h("div", { class: "vlkit-faint", "aria-live": "polite" });
  const place = h("div", { class: "vlkit-files" }, h("div", { class: "vlkit-row-of-buttons" }, upload, browse, input), note, list);
  const sendPieces = uploader(model);
  const endings = accept.split(",").filter((kind) => kind[0] === ".");
  const refused = ({ name, type, size }) => {
    if (!/^image\//.test(type) && !endings.some((ending) => name.toLowerCase().endsWith(ending)))
      return t("{name} is neither a table nor a picture, so it was not sent", { name });
    return size > MOST ? t("{name} has {size} MB; at most 512 MB can be sent. Give its path or address instead", { name, size: mega(size) }) : "";
  };
  const send = async (files) => {
    const group = `${Date.now()}`;
    const problems = files.map(refused).filter(Boolean);
    const all = files.filter((file) => !refused(file));
    for (const [number, file] of all.entries()) {
      const counted = { name: file.name, n: number + 1, m: all.length };
      note.textContent = t("Sending {name} ({n} of {m})", counted);
      const tell = (percent) => (note.textContent = t("Sending {name} ({n} of {m}): {percent} %", { ...counted, percent }));
      await sendPieces(file.name, file, { group, final: number === all.length - 1 }, tell);
    }
    note.textContent = problems.slice(0, 3).join(" · ") + (problems.length > 3 ? ` · ${t("and {more} more", { more: problems.length - 3 })}` : "");
  };
  upload.addEventListener("click", () => input.click());
  input.addEventListener("change", () => send([...input.files]).then(() => (input.value = "")));
  place.acceptDrops = (root) => acceptDrops(root, (event) => {
    const files = [...event.dataTransfer.files];
    if (files.length && !controls.spec("source").disabled) send(files);
  });
  browse.setAttribute("aria-expanded", "false");
  browse.addEventListener("click", () => {
    list.hidden = !list.hidden;
    browse.setAttribute("aria-expanded", String(!list.hidden));
    if (!list.hidden) model.send({ do: "browse", path: "" });
  });
  const choose = (path) => {
    list.hidden = true;
    browse.setAttribute("aria-expanded", "false");
    controls.set("source", path);
  };
  model.on("change:listing", () => {
    const { folder, up, entries, pictures } = model.get("listing");
    const row = (picture, text, action) =>
      h("button", { type: "button", class: "vlkit-entry", onclick: action }, icon(picture), h("span", {}, text));
    const use = folders && pictures
      ? [row("check", t("Use this folder: {n} pictures", { n: pictures }), () => choose(folder))] : [];
    list.replaceChildren(
      h("div", { class: "vlkit-faint" }, folder), ...use,
      row("left", t("One folder up"), () => model.send({ do: "browse", path: up })),
      ...entries.map(([name, path, isFolder]) =>
        isFolder ? row("right", `${name}/`, () => model.send({ do: "browse", path })) : row("code", name, () => choose(path))),
    );
  });
  return place;
}

export function svgElement(tag, properties, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

/** A picture with the boxes of an answer on it; coordinates are pixels of the original. */
export function boxedPicture({ src, size }, items, about) {
  const picture = h("img", { src, alt: about });
  const overlay = svgElement("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    h("span", {}));
  for (const { points, color, pattern } of items) {
    for (const under of [true, false]) {
      const look = { class: under ? "vlkit-box-under" : "vlkit-box-over", stroke: under ? "#000" : color };
      if (!under && pattern.length) look["stroke-dasharray"] = pattern.map((part) => part * 3).join(" ");
      const [[x, y], [x2, y2] = []] = points;
      if (points.length === 1) svgElement("circle", { cx: x, cy: y, r: 0.02 * Math.max(...size), ...look }, overlay);
      else if (points.length === 2) svgElement("rect", { x, y, width: x2 - x, height: y2 - y, ...look }, overlay);
      else svgElement("polygon", { points: points.join(" "), ...look }, overlay);
    }
  }
  return h("span", { class: "vlkit-boxed", style: `aspect-ratio: ${size[0]} / ${size[1]}; --ratio: ${size[0] / size[1]}` }, picture, overlay);
}

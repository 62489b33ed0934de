// A picture to draw a box on, with the boxes of an answer and a list of them.
// All coordinates are pixels of the upright original; the SVG's viewBox does the scaling.

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 4; // screen pixels: less is a click
const HINT =
  "Picture. Drag to draw a box. Keys: arrows move the box, with Shift they change its size, " +
  "Enter asks about it, Escape removes it.";

function make(kind, className, parent) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

function draw(kind, attributes, parent) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const boundsOf = (points) => {
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
};

function render({ model, el }) {
  const root = make("div", "vlkit-canvas", el);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's arrow keys change cells
  const stage = make("div", "vlkit-canvas-stage", root);
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-label", HINT);
  const picture = make("img", "", stage);
  picture.draggable = false;
  const overlay = draw("svg", { preserveAspectRatio: "none", "aria-hidden": "true" }, stage);
  const tags = make("div", "", stage);
  const about = make("div", "vlkit-canvas-about", root);
  about.setAttribute("aria-live", "polite");
  const list = make("ul", "vlkit-canvas-list", root);
  let buttons = [];
  let begun = null; // where the mouse went down
  let moving = null; // the box that is being drawn

  const size = () => model.get("picture_size");
  const shown = () =>
    model
      .get("items")
      .map((item, index) => ({ ...item, index }))
      .filter((item) => item.confidence === null || item.confidence >= model.get("threshold"));

  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  function drawShape(item, classes) {
    const group = draw("g", { class: classes }, overlay);
    const point = item.points.length === 1;
    const [x1, y1, x2, y2] = boundsOf(item.points);
    const radius = 0.012 * Math.max(...size());
    const under = item.truth ? [] : ["vlkit-canvas-under"]; // gaps let the answer through
    for (const part of [...under, "vlkit-canvas-line"]) {
      const style = { class: part };
      if (part === "vlkit-canvas-line") {
        style.style = `stroke: ${item.color}`;
        if (item.truth) style.class += " vlkit-canvas-truth";
      }
      if (point) draw("circle", { cx: x1, cy: y1, r: radius, ...style }, group);
      else if (item.points.length === 2)
        draw("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...style }, group);
      else draw("polygon", { points: item.points.map((p) => p.join(",")).join(" "), ...style }, group);
    }
    return group;
  }

  function drawTag(item) {
    const [width, height] = size();
    const [x1, y1] = boundsOf(item.points);
    const tag = make("div", "vlkit-canvas-tag", tags);
    if (y1 < 0.06 * height) tag.classList.add("vlkit-canvas-within");
    tag.textContent = item.label;
    tag.style.left = `${clamp((100 * x1) / width, 0, 80)}%`;
    tag.style.top = `${(100 * y1) / height}%`;
    tag.style.background = item.color;
    tag.style.color = item.text_color;
  }

  function drawAll() {
    overlay.replaceChildren();
    tags.replaceChildren();
    overlay.setAttribute("viewBox", `0 0 ${size()[0]} ${size()[1]}`);
    const hot = model.get("highlighted");
    for (const item of shown()) {
      const state = item.index === hot ? "vlkit-canvas-hot" : hot >= 0 ? "vlkit-canvas-dim" : "";
      drawShape(item, state);
      if (item.label && (hot < 0 || item.index === hot)) drawTag(item);
    }
    if (model.get("show_truth"))
      for (const item of model.get("truth")) drawShape(item, hot >= 0 ? "vlkit-canvas-dim" : "");
    const box = moving ?? model.get("drawn");
    if (box.length === 4)
      drawShape({ points: [box.slice(0, 2), box.slice(2)], color: "#fff" }, "vlkit-canvas-drawn");
    tell(box);
    buttons.forEach(([index, button]) =>
      button.classList.toggle("vlkit-canvas-hot", index === hot),
    );
  }

  function tell(box) {
    const parts = [];
    const [all, seen] = [model.get("items").length, shown().length];
    if (box.length === 4) parts.push(`Drawn: (${box.map(Math.round).join(", ")})`);
    if (all) parts.push(seen < all ? `${seen} of ${all} answers shown` : `${all} in the answer`);
    if (model.get("show_truth")) parts.push("dashed: truth");
    about.textContent = parts.join(" · ") || "Drag on the picture to draw a box, or ask in words.";
  }

  function fillList() {
    list.replaceChildren();
    buttons = shown().map((item) => {
      const button = make("button", "", make("li", "", list));
      button.type = "button";
      make("i", "", button).style.background = item.color;
      make("span", "", button).textContent = item.label || "(no label)";
      const numbers = item.points.map((p) => p.map(Math.round).join(",")).join(" – ");
      const sure = item.confidence === null ? "" : ` · ${Math.round(100 * item.confidence)} %`;
      make("small", "", button).textContent = numbers + sure;
      for (const event of ["pointerenter", "focus"])
        button.addEventListener(event, () => set("highlighted", item.index));
      for (const event of ["pointerleave", "blur"])
        button.addEventListener(event, () => set("highlighted", -1));
      return [item.index, button];
    });
    drawAll();
  }

  function place(event) {
    const area = picture.getBoundingClientRect();
    const [width, height] = size();
    return [
      clamp(((event.clientX - area.left) / area.width) * width, 0, width),
      clamp(((event.clientY - area.top) / area.height) * height, 0, height),
    ];
  }

  function under([x, y]) {
    const near = 0.012 * Math.max(...size());
    const hits = shown().filter((item) => {
      const [x1, y1, x2, y2] = boundsOf(item.points);
      const slack = item.points.length === 1 ? near : 0;
      return x1 - slack <= x && x <= x2 + slack && y1 - slack <= y && y <= y2 + slack;
    });
    const area = ({ points }) => {
      const [x1, y1, x2, y2] = boundsOf(points);
      return (x2 - x1) * (y2 - y1);
    };
    hits.sort((a, b) => area(a) - area(b)); // the smallest is on top
    return hits.length ? hits[0].index : -1;
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || model.get("busy") || !picture.src) return;
    event.preventDefault();
    stage.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    begun = { at: place(event), x: event.clientX, y: event.clientY };
  });
  stage.addEventListener("pointermove", (event) => {
    if (begun) {
      moving = boundsOf([begun.at, place(event)]);
      drawAll();
    } else {
      const hit = under(place(event));
      if (hit !== model.get("highlighted")) set("highlighted", hit);
    }
  });
  stage.addEventListener("pointerup", (event) => {
    if (!begun) return;
    const far = Math.hypot(event.clientX - begun.x, event.clientY - begun.y) >= LEAST;
    const box = boundsOf([begun.at, place(event)]);
    begun = moving = null;
    set("drawn", far && box[2] > box[0] && box[3] > box[1] ? box : []);
    drawAll();
  });
  stage.addEventListener("pointercancel", () => {
    begun = moving = null;
    drawAll();
  });
  stage.addEventListener("pointerleave", () => {
    if (!begun && model.get("highlighted") !== -1) set("highlighted", -1);
  });

  stage.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!way && !["Enter", "Escape", "Delete"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (model.get("busy")) return;
    if (event.key === "Enter") model.send({ kind: "ask" });
    else if (!way) set("drawn", []);
    else set("drawn", moved(model.get("drawn"), way, event.shiftKey));
  });

  function moved(box, [dx, dy], resize) {
    const [width, height] = size();
    if (box.length !== 4) return [0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height];
    const step = Math.max(1, Math.max(width, height) / 100);
    let [x1, y1, x2, y2] = box;
    if (resize)
      return [x1, y1, clamp(x2 + dx * step, x1 + 1, width), clamp(y2 + dy * step, y1 + 1, height)];
    const right = clamp(dx * step, -x1, width - x2);
    const down = clamp(dy * step, -y1, height - y2);
    return [x1 + right, y1 + down, x2 + right, y2 + down];
  }

  function showPicture() {
    stage.style.display = model.get("picture") ? "" : "none";
    if (model.get("picture")) picture.src = model.get("picture");
    else picture.removeAttribute("src");
    const [width, height] = size(); // small ones are enlarged
    picture.style.width = `${Math.round(Math.min(Math.max(width, 420), (520 * width) / height))}px`;
    picture.alt = model.get("about");
    fillList();
  }

  function showBusy() {
    root.classList.toggle("vlkit-canvas-busy", model.get("busy"));
    stage.setAttribute("aria-busy", String(model.get("busy")));
  }

  const handlers = [
    ["change:picture", showPicture],
    ["change:items", fillList],
    ["change:threshold", fillList],
    ["change:truth", drawAll],
    ["change:show_truth", drawAll],
    ["change:drawn", drawAll],
    ["change:highlighted", drawAll],
    ["change:busy", showBusy],
  ];
  for (const [name, handler] of handlers) model.on(name, handler);
  showPicture();
  showBusy();
  return () => {
    for (const [name, handler] of handlers) model.off(name, handler);
  };
}

function initialize({ model }) {
  model.on("msg:custom", (message) => {
    if (message?.kind !== "download") return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([message.text], { type: "application/json" }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

export default { initialize, render };

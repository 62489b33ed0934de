// A picture with boxes: zoom, pan, full screen, labels that keep clear of each other, a box drawn
// or corrected by hand. All coordinates given and taken are pixels of the upright original; boxes
// and labels are drawn in screen pixels, so that they never shrink or grow with the picture.

import { h, icon, iconButton, translator } from "./controls.js";

const SVG = "http://www.w3.org/2000/svg";
const LEAST = 4; // screen pixels: less is a click
const TALLEST = 520; // screen pixels of the stage
const READABLE = 96; // screen pixels of a picture's shorter side
const LINE = 2.5; // width of a box's line
const MOST_CHIPS = 60;
const NARROW = 320; // screen pixels of a frame, for the line and the buttons under the picture

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
const common = (a, b) =>
  Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) *
  Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

/**
 * A canvas in `host`.
 *
 * callbacks: `hot(index)` an item is pointed at, -1 for none; with them the canvas can be drawn on:
 * `drawn(box)`, `ask()` (Enter), `changed(index, facts)`: a box corrected or hidden by hand;
 * `undo()` takes the last such change back, if `canUndo()`.
 * Returns { set(state), element, setHot(index) }; state: picture, size, about, items, truth, drawn,
 * threshold, showTruth, busy.
 */
export function createCanvas(host, t, callbacks = {}) {
  const editable = Boolean(callbacks.drawn);
  const state = { picture: "", size: [1, 1], about: "", items: [], truth: [], drawn: [] };
  Object.assign(state, { threshold: 0, showTruth: false, busy: false });
  const hidden = new Set(); // items that a hand has hidden
  let [hot, pinned] = [-1, -1];
  let view = { scale: 1, x: 0, y: 0, fitted: true }; // screen = scale × original + (x, y)
  let drawing = editable && !matchMedia("(pointer: coarse)").matches; // else a drag moves the picture
  let gesture = null; // what the pointers that are down are doing
  let moving = null; // the box that is being drawn
  const pointers = new Map();
  const LARGE = editable ? 640 : 440; // screen pixels to which a small picture is enlarged

  const hint = editable
    ? "Picture. Drag to draw a box. Keys: arrows move the box, with Shift they change its size, " +
      "Enter asks about it, Escape removes it, plus and minus zoom, 0 shows all."
    : "Picture. Keys: plus and minus zoom, 0 shows all, arrows move it.";
  const image = h("img", { draggable: "false", alt: "" });
  const overlay = draw("svg", { "aria-hidden": "true" }, h("div"));
  const tags = h("div", { class: "vlkit-canvas-tags", "aria-hidden": "true" });
  const stage = h(
    "div",
    { class: "vlkit-canvas-stage", tabindex: "0", role: "application", "aria-label": t(hint) },
    image, overlay, tags,
  );
  const tool = (name, label, onclick) => iconButton({ icon: name, label: t(label), onclick });
  const drawTool = editable ? tool("box", "Draw a box by dragging", () => setDrawing(!drawing)) : null;
  const undoTool = callbacks.undo ? tool("undo", "Undo the last correction (Ctrl+Z)", () => callbacks.undo()) : null;
  const full = tool("full", "Full screen", () => toggleFull());
  const bar = h(
    "div",
    { class: "vlkit-canvas-bar", role: "toolbar", "aria-label": t("Picture") },
    drawTool, undoTool,
    tool("plus", "Zoom in", () => zoom(1.5)),
    tool("minus", "Zoom out", () => zoom(1 / 1.5)),
    tool("fit", "Show all", () => fit()),
    full,
  );
  const about = h("div", { class: "vlkit-canvas-about", "aria-live": "polite" });
  const list = h("ul", { class: "vlkit-canvas-list" });
  const frame = h("div", { class: "vlkit-canvas-frame" }, stage, h("div", { class: "vlkit-canvas-foot" }, about, bar));
  const element = h("div", { class: "vlkit-canvas", "data-lm-suppress-shortcuts": "true" }, frame, list);
  host.append(element);

  const shown = () =>
    state.items
      .map((item, index) => ({ ...item, index }))
      .filter((item) => !hidden.has(item.index))
      .filter((item) => item.confidence === null || item.confidence >= state.threshold);
  const onScreen = ([x, y]) => [x * view.scale + view.x, y * view.scale + view.y];
  const place = (event) => {
    const area = stage.getBoundingClientRect();
    const [width, height] = state.size;
    return [
      clamp((event.clientX - area.left - view.x) / view.scale, 0, width),
      clamp((event.clientY - area.top - view.y) / view.scale, 0, height),
    ];
  };

  // --- zoom and pan -------------------------------------------------------------------------------

  function fit() {
    const [width, height] = state.size;
    const whole = document.fullscreenElement === frame || frame.classList.contains("vlkit-canvas-full");
    if (whole) frame.style.maxWidth = "";
    let wide = (whole ? frame : element).clientWidth || 400;
    const tall = whole ? (frame.clientHeight || 600) - bar.offsetHeight - 8 : TALLEST;
    let scale = Math.min(wide / width, tall / height);
    if (!whole) scale = Math.min(scale, Math.max(1, LARGE / Math.max(width, height)));
    const least = READABLE / Math.min(width, height); // a strip of a picture begins readable
    const strip = scale < least && Math.min(width, height) * scale < READABLE;
    if (strip) scale = Math.min(least, 1.5 * Math.max(wide / width, tall / height));
    const high = whole ? tall : clamp(height * scale, Math.min(120, tall), tall);
    stage.style.height = `${Math.round(high)}px`;
    if (!editable && !whole) { // the frame is as wide as its picture
      wide = Math.min(wide, Math.max(NARROW, Math.round(width * scale)));
      frame.style.maxWidth = `${wide}px`;
    }
    const x = Math.max(0, (wide - width * scale) / 2);
    view = { scale, x, y: Math.max(0, (high - height * scale) / 2), fitted: true };
    redraw();
  }

  function zoom(factor, center = [stage.clientWidth / 2, stage.clientHeight / 2]) {
    const least = Math.min(stage.clientWidth / state.size[0], stage.clientHeight / state.size[1]) / 2;
    const scale = clamp(view.scale * factor, Math.min(least, 1), 40);
    const by = scale / view.scale;
    const [x, y] = center.map((c, i) => c - (c - [view.x, view.y][i]) * by);
    view = { scale, ...inside(x, y, scale), fitted: false };
    redraw();
  }

  /** The picture never leaves the stage. */
  function inside(x, y, scale) {
    const keep = (at, length, room) =>
      length <= room ? clamp(at, 0, room - length) : clamp(at, room - length, 0);
    return {
      x: keep(x, state.size[0] * scale, stage.clientWidth),
      y: keep(y, state.size[1] * scale, stage.clientHeight),
    };
  }

  function pan(dx, dy) {
    view = { ...view, ...inside(view.x + dx, view.y + dy, view.scale), fitted: false };
    redraw();
  }

  function toggleFull() {
    const on = document.fullscreenElement === frame || frame.classList.contains("vlkit-canvas-full");
    if (on && document.fullscreenElement) document.exitFullscreen();
    else if (on) frame.classList.remove("vlkit-canvas-full");
    else frame.requestFullscreen?.().catch(() => frame.classList.add("vlkit-canvas-full"));
    setTimeout(fit, 50);
  }
  frame.addEventListener("fullscreenchange", () => setTimeout(fit, 50));

  function setDrawing(on) {
    drawing = on;
    drawTool?.setAttribute("aria-pressed", String(drawing));
    stage.classList.toggle("vlkit-canvas-drawing", drawing);
  }

  // --- drawing ------------------------------------------------------------------------------------

  function shape(item, classes, dash) {
    const group = draw("g", { class: classes }, overlay);
    const points = item.points.map(onScreen);
    const [x1, y1, x2, y2] = boundsOf(points);
    for (const part of ["vlkit-canvas-under", "vlkit-canvas-line"]) {
      const style = { class: part };
      if (part === "vlkit-canvas-line" && item.color) style.style = `stroke: ${item.color}`;
      if (part === "vlkit-canvas-line" && dash.length)
        style["stroke-dasharray"] = dash.map((length) => length * LINE).join(" ");
      if (points.length === 1) draw("circle", { cx: x1, cy: y1, r: 7, ...style }, group);
      else if (points.length === 2)
        draw("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...style }, group);
      else draw("polygon", { points: points.map((p) => p.join(",")).join(" "), ...style }, group);
    }
    return group;
  }

  /** Labels at the first free place around their box; those without one fold away. */
  function drawTags(items) {
    tags.replaceChildren();
    const chosen = hot >= 0 ? hot : pinned;
    const named = items.filter((item) => item.label && (chosen < 0 || item.index === chosen));
    const [wide, high] = [stage.clientWidth, stage.clientHeight];
    const made = named.map((item) => {
      const tag = h("div", { class: "vlkit-canvas-tag" }, item.label);
      Object.assign(tag.style, { background: item.color, color: item.text_color });
      tags.append(tag);
      return tag;
    });
    const sizes = made.map((tag) => [tag.offsetWidth, tag.offsetHeight]);
    const boxes = items.map((item) => boundsOf(item.points.map(onScreen)));
    const taken = [];
    let folded = 0;
    named.forEach((item, i) => {
      const box = boundsOf(item.points.map(onScreen));
      const [w, hi] = sizes[i];
      const [x1, y1, x2, y2] = box;
      const gone = x2 < 0 || y2 < 0 || x1 > wide || y1 > high;
      const places = [
        [x1 - 1, y1 - hi - 1], [x2 - w + 1, y1 - hi - 1], [x1 - 1, y2 + 1], [x2 - w + 1, y2 + 1],
        [x2 + 2, y1], [x1 - w - 2, y1], [x1 + 2, y1 + 2], [x1 + 2, y2 - hi - 2],
      ].map(([x, y]) => [clamp(x, 0, wide - w), clamp(y, 0, high - hi)]);
      let best = null;
      for (const [rank, [x, y]] of places.entries()) {
        const area = [x, y, x + w, y + hi];
        const labels = taken.reduce((sum, other) => sum + common(area, other), 0);
        const things = boxes.reduce((sum, other) => sum + common(area, other), 0);
        const cost = 20 * labels + things + rank;
        if (!best || cost < best.cost) best = { cost, labels, area };
      }
      const drop = gone || (best.labels > 0 && item.index !== chosen);
      made[i].hidden = drop;
      if (drop) folded += gone ? 0 : 1;
      else {
        taken.push(best.area);
        made[i].style.transform = `translate(${Math.round(best.area[0])}px, ${Math.round(best.area[1])}px)`;
      }
    });
    return folded;
  }

  function redraw() {
    const [width, height] = state.size;
    const at = { left: view.x, top: view.y, width: width * view.scale, height: height * view.scale };
    for (const [side, value] of Object.entries(at)) image.style[side] = `${value}px`;
    image.style.imageRendering = view.scale > 6 ? "pixelated" : "auto";
    overlay.replaceChildren();
    if (undoTool) undoTool.hidden = !callbacks.canUndo();
    const items = shown();
    const chosen = hot >= 0 ? hot : pinned;
    for (const item of items) {
      const mood = item.index === chosen ? "vlkit-canvas-hot" : chosen >= 0 ? "vlkit-canvas-dim" : "";
      shape(item, `${mood} ${item.corrected ? "vlkit-canvas-corrected" : ""}`, item.pattern ?? []);
    }
    if (state.showTruth)
      for (const item of state.truth) shape({ ...item, color: "" }, "vlkit-canvas-truth", []);
    const box = moving ?? state.drawn;
    if (box.length === 4) shape({ points: [box.slice(0, 2), box.slice(2)] }, "vlkit-canvas-drawn", []);
    if (editable && pinned >= 0 && !moving) drawHandles();
    tell(box, items, drawTags(items), chosen);
    for (const chip of list.children) {
      const on = Number(chip.dataset.index) === chosen;
      chip.classList.toggle("vlkit-canvas-hot", on);
    }
  }

  function drawHandles() {
    const item = state.items[pinned];
    if (!item || item.points.length !== 2) return;
    const [x1, y1, x2, y2] = boundsOf(item.points);
    for (const [i, corner] of [[x1, y1], [x2, y1], [x2, y2], [x1, y2]].entries()) {
      const [cx, cy] = onScreen(corner);
      const handle = draw("circle", { class: "vlkit-canvas-handle", cx, cy, r: 6 }, overlay);
      handle.dataset.corner = i;
    }
  }

  const nameOf = (item) => item.label || t("(no name)");
  const numbersOf = (item) => item.points.map((point) => point.map(Math.round).join(", ")).join(" – ");

  function tell(box, items, folded, chosen) {
    const parts = [];
    const all = state.items.length;
    const pointed = items.find((item) => item.index === chosen);
    if (pointed) parts.push(`${nameOf(pointed)}: ${numbersOf(pointed)}`);
    if (box.length === 4) parts.push(t("Drawn: ({numbers})", { numbers: box.map(Math.round).join(", ") }));
    if (all && items.length < all)
      parts.push(t("{shown} of {all} boxes shown", { shown: items.length, all }));
    if (folded) parts.push(t("names left out: {folded}; zoom in, or point at a box", { folded }));
    if (state.showTruth) parts.push(t("black and white: truth"));
    if (editable && pinned >= 0) parts.push(t("drag a corner or press arrows to correct the box; Delete hides it"));
    if (!parts.length && editable) parts.push(t(drawing ? "Drag on the picture to draw a box, or ask in words." : "Press the box button to draw on the picture."));
    about.textContent = parts.join(" · ");
  }

  function fillList() {
    const items = state.items
      .map((item, index) => ({ ...item, index }))
      .filter((item) => item.confidence === null || item.confidence >= state.threshold);
    list.replaceChildren(
      ...items.slice(0, MOST_CHIPS).map((item) => {
        const facts = [item.confidence === null ? "" : `${Math.round(100 * item.confidence)} %`, item.corrected ? t("corrected") : ""];
        const mark = h("i", { style: `background: ${item.color}` });
        const words = h("span", {}, nameOf(item));
        const small = h("small", {}, facts.filter(Boolean).join(" · "));
        const chip = h("button", { type: "button", class: "vlkit-chip", "aria-pressed": String(pinned === item.index), title: `${numbersOf(item)}. ${t("Keep it highlighted")}` }, mark, words, small);
        for (const event of ["pointerenter", "focus"]) chip.addEventListener(event, () => point(item.index));
        for (const event of ["pointerleave", "blur"]) chip.addEventListener(event, () => point(-1));
        chip.addEventListener("click", () => pin(item.index));
        const off = hidden.has(item.index);
        const eye = h("button", { type: "button", class: "vlkit-eye", "aria-pressed": String(off), "aria-label": t("Hide {name}", { name: nameOf(item) }) }, icon("eye"));
        eye.addEventListener("click", () => hide(item.index, !off));
        const row = h("li", { class: off ? "vlkit-canvas-off" : "" }, chip, eye);
        row.dataset.index = item.index;
        return row;
      }),
    );
    if (items.length > MOST_CHIPS) list.append(h("li", {}, t("and {more} more", { more: items.length - MOST_CHIPS })));
    redraw();
  }

  function hide(index, off) {
    const focused = list.contains(document.activeElement); // on a button that is drawn again
    if (off) hidden.add(index);
    else hidden.delete(index);
    fillList();
    callbacks.changed?.(index, { hidden: off });
    if (focused) list.querySelector(`[data-index="${index}"] .vlkit-eye`)?.focus();
  }

  function point(index) {
    if (index === hot) return;
    hot = index;
    callbacks.hot?.(index);
    redraw();
  }

  function pin(index) {
    pinned = pinned === index ? -1 : index;
    for (const chip of list.querySelectorAll(".vlkit-chip"))
      chip.setAttribute("aria-pressed", String(Number(chip.parentElement.dataset.index) === pinned));
    redraw();
  }

  // --- mouse, pen and touch -----------------------------------------------------------------------

  function under([x, y]) {
    const near = 9 / view.scale;
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

  const handleAt = (event) => {
    const area = stage.getBoundingClientRect();
    const reach = event.pointerType === "touch" ? 22 : 10;
    return [...overlay.querySelectorAll(".vlkit-canvas-handle")].find(
      (handle) =>
        Math.hypot(handle.getAttribute("cx") - event.clientX + area.left, handle.getAttribute("cy") - event.clientY + area.top) < reach,
    );
  };

  stage.addEventListener("pointerdown", (event) => {
    if ((event.button !== 0 && event.button !== 1) || !state.picture) return;
    if (drawing || event.pointerType !== "touch" || zoomedIn()) event.preventDefault();
    stage.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const handle = handleAt(event);
    const start = { at: place(event), x: event.clientX, y: event.clientY, far: false };
    if (pointers.size === 2) gesture = { kind: "pinch" };
    else if (handle) gesture = { kind: "corner", corner: Number(handle.dataset.corner), ...start };
    else if (drawing && event.button === 0 && !event.altKey) gesture = state.busy ? null : { kind: "draw", ...start };
    else gesture = { kind: "pan", ...start };
    if (gesture?.kind === "pinch") moving = null;
  });

  const zoomedIn = () => state.size.some((side, i) => side * view.scale > [stage.clientWidth, stage.clientHeight][i] + 1);

  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before || !gesture) return void (pointers.size || point(under(place(event))));
    const now = [event.clientX, event.clientY];
    if (gesture.kind === "pinch") pinch(event.pointerId, now);
    pointers.set(event.pointerId, now);
    gesture.far ||= Math.hypot(now[0] - gesture.x, now[1] - gesture.y) >= LEAST;
    if (gesture.kind === "pan") pan(now[0] - before[0], now[1] - before[1]);
    if (gesture.kind === "draw") {
      moving = boundsOf([gesture.at, place(event)]);
      redraw();
    }
    if (gesture.kind === "corner") moveCorner(place(event));
  });

  function pinch(id, now) {
    const area = stage.getBoundingClientRect();
    const other = [...pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const before = pointers.get(id);
    const middle = (p) => [(p[0] + other[0]) / 2, (p[1] + other[1]) / 2];
    const [m, n] = [middle(before), middle(now)];
    const length = (p) => Math.max(1, Math.hypot(p[0] - other[0], p[1] - other[1]));
    zoom(length(now) / length(before), [n[0] - area.left, n[1] - area.top]);
    pan(n[0] - m[0], n[1] - m[1]);
  }

  function moveCorner([x, y]) {
    const item = state.items[pinned];
    let [x1, y1, x2, y2] = boundsOf(item.points);
    if (gesture.corner === 0 || gesture.corner === 3) x1 = Math.min(x, x2 - 1);
    else x2 = Math.max(x, x1 + 1);
    if (gesture.corner < 2) y1 = Math.min(y, y2 - 1);
    else y2 = Math.max(y, y1 + 1);
    const points = [[x1, y1], [x2, y2]];
    state.items = state.items.map((one, i) => (i === pinned ? { ...one, points, corrected: true } : one));
    redraw();
  }

  stage.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    const done = gesture;
    if (!done) return;
    if (done.kind === "pinch") return void (pointers.size || (gesture = null));
    gesture = moving = null;
    if (done.kind === "corner") return done.far && callbacks.changed?.(pinned, { points: state.items[pinned].points, corrected: true });
    if (!done.far) return click(place(event));
    if (done.kind !== "draw") return;
    const box = boundsOf([done.at, place(event)]);
    setDrawn(box[2] > box[0] && box[3] > box[1] ? box : []);
  });
  stage.addEventListener("pointercancel", (event) => {
    pointers.delete(event.pointerId);
    gesture = moving = null;
    redraw();
  });
  stage.addEventListener("pointerleave", () => gesture || point(-1));
  stage.addEventListener("dblclick", () => !drawing && zoom(2));
  stage.addEventListener(
    "wheel",
    (event) => {
      const whole = document.fullscreenElement === frame;
      if (!event.ctrlKey && !event.metaKey && !whole) return; // the page scrolls
      event.preventDefault();
      const area = stage.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY / 300), [event.clientX - area.left, event.clientY - area.top]);
    },
    { passive: false },
  );

  function click(at) {
    const hit = under(at);
    if (editable && state.drawn.length) setDrawn([]);
    if (hit >= 0 || pinned >= 0) pin(hit >= 0 ? hit : pinned);
    else redraw();
  }

  function setDrawn(box) {
    state.drawn = box;
    callbacks.drawn?.(box);
    redraw();
  }

  // --- keys ---------------------------------------------------------------------------------------

  stage.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    const known = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => fit() };
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && callbacks.undo) {
      event.preventDefault();
      event.stopPropagation();
      return callbacks.undo();
    }
    if (event.ctrlKey || event.metaKey) return;
    let act = known[event.key];
    if (way && (!editable || event.altKey)) act = () => pan(-40 * way[0], -40 * way[1]);
    else if (editable && !state.busy) {
      const item = state.drawn.length ? null : state.items[pinned]; // a highlighted box is corrected
      if (way && item?.points.length === 2) act = () => correct(moved(boundsOf(item.points), way, event.shiftKey));
      else if (way) act = () => setDrawn(moved(state.drawn, way, event.shiftKey));
      else if (item && event.key === "Delete") act = () => hide(pinned, true);
      else if (item && event.key === "Escape") act = () => pin(pinned);
      else if (event.key === "Enter") act = () => callbacks.ask?.();
      else if (["Escape", "Delete"].includes(event.key) && state.drawn.length) act = () => setDrawn([]);
    }
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });

  function correct([x1, y1, x2, y2]) {
    callbacks.changed?.(pinned, { points: [[x1, y1], [x2, y2]], corrected: true });
  }

  function moved(box, [dx, dy], resize) {
    const [width, height] = state.size;
    if (box.length !== 4) return [0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height];
    const step = Math.max(1, Math.max(width, height) / 100);
    const [x1, y1, x2, y2] = box;
    if (resize)
      return [x1, y1, clamp(x2 + dx * step, x1 + 1, width), clamp(y2 + dy * step, y1 + 1, height)];
    const right = clamp(dx * step, -x1, width - x2);
    const down = clamp(dy * step, -y1, height - y2);
    return [x1 + right, y1 + down, x2 + right, y2 + down];
  }

  // --- state --------------------------------------------------------------------------------------

  function set(changes) {
    const another = changes.picture !== undefined && changes.picture !== state.picture;
    Object.assign(state, changes);
    if (changes.items && gesture?.kind !== "corner") {
      hidden.clear();
      changes.items.forEach((item, index) => item.hidden && hidden.add(index));
      if (!changes.items.some((item) => item.corrected || item.hidden !== undefined)) pinned = -1;
      hot = -1;
    }
    if (another) {
      if (state.picture) image.src = state.picture;
      else image.removeAttribute("src");
    }
    element.hidden = !state.picture;
    image.alt = state.about;
    stage.setAttribute("aria-busy", String(Boolean(state.busy)));
    element.classList.toggle("vlkit-canvas-busy", Boolean(state.busy));
    if (another) fit();
    fillList();
  }

  setDrawing(drawing);
  const watch = new ResizeObserver(() => (view.fitted ? fit() : redraw()));
  watch.observe(element);
  return { element, set, setHot: (index) => index !== hot && ((hot = index), redraw()), pin };
}

/** A canvas that shows the traits of a BoxCanvas, and writes what a hand does to them. */
export function canvasOf(model, host, t, onHot = () => {}) {
  const write = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const past = []; // [index, item] before each correction
  const put = (index, item) => write("items", model.get("items").map((one, i) => (i === index ? item : one)));
  const canvas = createCanvas(host, t, {
    hot: (index) => {
      write("highlighted", index);
      onHot(index);
    },
    drawn: (box) => write("drawn", box),
    ask: () => model.send({ kind: "ask" }),
    changed: (index, facts) => {
      const item = model.get("items")[index];
      past.push([index, { corrected: false, hidden: false, ...item }]);
      put(index, { ...item, ...facts });
    },
    canUndo: () => past.length > 0,
    undo: () => past.length && put(...past.pop()),
  });
  const names = {
    picture: "picture", picture_size: "size", about: "about", items: "items", truth: "truth",
    drawn: "drawn", threshold: "threshold", show_truth: "showTruth", busy: "busy",
  };
  model.on("change:items", () => { // of another answer
    if (!model.get("items").some((item) => item.corrected || item.hidden !== undefined)) past.length = 0;
  });
  const all = (changed) =>
    canvas.set(Object.fromEntries(changed.map((name) => [names[name], model.get(name)])));
  for (const name of Object.keys(names))
    if (name !== "picture_size")
      model.on(`change:${name}`, () => all(name === "picture" ? ["picture_size", "about", name] : [name]));
  model.on("change:highlighted", () => {
    canvas.setHot(model.get("highlighted"));
    onHot(model.get("highlighted"));
  });
  all(Object.keys(names));
  return canvas;
}

export const boxCanvas = {
  render({ model, el }) {
    const root = h("div", { class: "vlkit" });
    el.append(root);
    canvasOf(model, root, translator(model.get("language")));
  },
};

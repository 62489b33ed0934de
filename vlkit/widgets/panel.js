// AskPanel, VideoPanel and GroundingPanel: a head, the conversation, the media tray, the question.
// Python holds all state (Panel and ChatTurn in ask.py); this file only shows it.

import { MOST, acceptDrops, codeView, controlsOf, copyText, fold, h, icon, iconButton, mega, plainly, redrawn, saveFiles, statusLine, translator, unansweredLine, uploader } from "./controls.js";
import { canvasOf, createCanvas } from "./canvas.js";

const SHRINK_FROM = 8 * 1024 * 1024; // bytes of a picture that is made smaller before it is sent
const SHRINK_TO = 4096; // pixels of its longer side
// coordinates in a text that is still being written
const COORDINATES = /\s*\(\d+,\s*\d+\)(,\s*\(\d+,\s*\d+\))*|\s*\(\d[\d,\s()]*$/g;
const TIME = /(\d+):(\d\d(?:\.\d+)?)|(\d+(?:\.\d+)?)(?:\s*(?:-|–|to|and|到|至)\s*(\d+(?:\.\d+)?))?\s*(?:s|secs?|seconds?|秒)(?![a-z])/g;

const follow = (model, names, show) => {
  model.on(names.split(" ").map((name) => `change:${name}`).join(" "), show);
  show();
};

// --- one question and its answer ------------------------------------------------------------------

/** host: { t, model, index(), last(), canvas (of the grounding panel), seek (of a clip), panel }. */
function turnView(turn, host) {
  const { t } = host;
  const send = (what, more = {}) => host.model.send({ do: what, turn: host.index(turn), ...more });
  const cards = turn.get("media");
  const known = turn.get("known");
  const small = (card, i) => h("button", { type: "button", class: "vlkit-enlarge", title: `${card.name}, ${card.about}`, "aria-label": t("Enlarge {name}", { name: card.name }), onclick: () => send("enlarge", { index: known + i }) }, h("img", { src: card.thumb, alt: "" }));
  const names = cards.map((card) => card.name).join(", ");
  const about = cards.length > 4 ? t("{n} pictures", { n: cards.length }) : names;
  // the box of the box button, in the family's own tags, is for the model; what was typed is shown as it is
  const asked = turn.get("question").replace(/^(What is in this box\? )<\|?box(?:_start\|)?>([^<]*)<(?:\/box|\|box_end\|)>$/, "$1▢ $2");
  const edit = iconButton({ icon: "edit", label: t("Edit this question and ask again"), class: "vlkit-edit", onclick: () => send("edit") });
  const question = h(
    "div", { class: "vlkit-asked" },
    cards.length > known ? h("div", { class: "vlkit-media" }, ...cards.slice(known).map(small)) : null,
    h("div", { class: "vlkit-asked-text" }, asked),
    h("div", { class: "vlkit-about", title: names }, names ? t("about {names}", { names: about }) : t("without a picture")),
  );
  const text = h("div", { class: "vlkit-answer-text", lang: "" });
  const thinking = h("div");
  const picture = h("div", { class: "vlkit-answer-picture" });
  const problem = h("div", { class: "vlkit-problem" });
  const facts = h("div", { class: "vlkit-facts" });
  const copy = iconButton({ icon: "copy", label: t("Copy the answer") });
  copy.addEventListener("click", () => copyText(turn.get("parts").map(([part]) => part).join(""), copy, t));
  const code = iconButton({ icon: "code", label: t("Copy this turn as plain Python"), class: "vlkit-copy-code" });
  code.addEventListener("click", () => copyText(turn.get("code"), code, t));
  const save = iconButton({ icon: "save", label: t("Save the picture with its boxes"), onclick: () => send("picture") });
  const again = iconButton({ icon: "again", label: t("Answer again"), class: "vlkit-again", onclick: () => host.model.send({ do: "again" }) });
  const tools = h("div", { class: "vlkit-tools", role: "toolbar", "aria-label": t("Answer") }, copy, code, save, again);
  const raw = h("pre", { class: "vlkit-raw", tabindex: "0", "aria-label": t("Raw text") });
  const score = h("button", { type: "button", class: "vlkit-button", onclick: () => send("tokens") }, t("Show probabilities"));
  const tokens = fold(t("Tokens"), h("div", { class: "vlkit-tokens" }, raw, score));
  const answer = h("div", { class: "vlkit-answer" }, thinking, text, picture, problem, facts, h("div", { class: "vlkit-under" }, tools, tokens));
  const element = h("li", { class: "vlkit-turn" }, h("div", { class: "vlkit-row" }, edit, question), answer);
  let canvas = null;
  const began = performance.now();
  const clock = setInterval(() => { // until the first word, the time is what moves
    if (turn.get("state") === "running" && element.isConnected && !turn.get("progress")[0]) showFacts();
    else clearInterval(clock);
  }, 1000);

  const marks = () => text.querySelectorAll(".vlkit-name");
  const light = (index) => {
    for (const mark of marks())
      mark.classList.toggle("vlkit-hot", mark.dataset.items.split(" ").includes(String(index)));
  };
  const onMain = () => host.canvas && host.model.get("shown") === host.index(turn);
  const target = () => (onMain() ? host.canvas : canvas);

  function named(part, numbers) {
    const item = turn.get("items")[numbers[0]];
    const style = item ? `--vk-name: ${item.color}` : null;
    const mark = h("button", { type: "button", class: "vlkit-name", style, title: t("Show it on the picture") }, part);
    mark.dataset.items = numbers.join(" ");
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => target()?.setHot(numbers[0]));
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => target()?.setHot(-1));
    mark.addEventListener("click", () => target()?.pin(numbers[0]));
    return mark;
  }

  /** Times in an answer about a clip play it from there. */
  function timed(part) {
    if (!host.seek) return [part];
    const found = [];
    let at = 0;
    for (const match of part.matchAll(TIME)) {
      found.push(part.slice(at, match.index));
      found.push(h("button", { type: "button", class: "vlkit-time", title: t("Play from here"), onclick: () => host.seek(timesOf(match)[0]) }, match[0]));
      at = match.index + match[0].length;
    }
    return [...found, part.slice(at)];
  }

  function showAnswer() {
    const state = turn.get("state");
    const running = state === "running";
    element.setAttribute("aria-busy", String(running));
    element.classList.toggle("vlkit-running", running);
    if (running) {
      const written = turn.get("text").replace(COORDINATES, "");
      text.textContent = written;
      text.classList.toggle("vlkit-empty", !written);
    } else {
      text.classList.remove("vlkit-empty");
      text.replaceChildren(...turn.get("parts").flatMap(([part, numbers]) => (numbers.length ? [named(part, numbers)] : timed(part))));
    }
    tools.hidden = running;
    tokens.hidden = running || !turn.get("raw");
    copy.hidden = code.hidden = !turn.get("raw");
    save.hidden = !turn.get("picture");
    showFacts();
    showPicture();
    showPlace();
  }

  function showFacts() {
    const all = turn.get("facts");
    const parts = [];
    if (turn.get("state") === "running") {
      const [pieces, rate] = turn.get("progress");
      if (!pieces) parts.push(t("{n} s", { n: Math.round((performance.now() - began) / 1000) }));
      else parts.push(t("about {pieces} tokens", { pieces }), t("{rate} tokens/s", { rate: rate.toFixed(0) }));
    } else if (all.seconds !== undefined) {
      const rate = all.new_tokens / Math.max(all.seconds, 1e-3);
      if (all.image_tokens) parts.push(t("{n} picture tokens", { n: all.image_tokens }));
      if (all.video_tokens) parts.push(t("{n} clip tokens", { n: all.video_tokens }));
      parts.push(t("{n} prompt tokens", { n: all.prompt_tokens }), t("{n} new tokens", { n: all.new_tokens }));
      parts.push(t("{n} s", { n: all.seconds.toFixed(2) }), t("{rate} tokens/s", { rate: rate.toFixed(0) }));
      if (all.estimated) parts.push(t("counts estimated"));
      if (all.cost !== null) parts.push(t("cost {cost}", { cost: Number(all.cost.toPrecision(2)) }));
      if (turn.get("state") === "cancelled") parts.push(t("stopped"));
      if (turn.get("state") === "length") parts.push(t("cut off at the longest length"));
      if (all.note) parts.push(all.note);
    }
    facts.textContent = parts.join(" · ");
    problem.textContent = t(plainly(turn.get("problem")));
    problem.classList.toggle("vlkit-error", turn.get("state") === "failed");
  }

  function showPicture() {
    const source = turn.get("picture");
    const own = source && !onMain();
    picture.hidden = !own;
    if (!own) return;
    if (!canvas) canvas = createCanvas(picture, t, { hot: light });
    canvas.set({ picture: source, size: turn.get("picture_size"), items: turn.get("items"), about: names });
  }

  function showTokens() {
    const scored = turn.get("tokens");
    score.hidden = scored.length > 0 || !host.model.get("head").scores;
    raw.replaceChildren(
      ...(scored.length
        ? scored.map(([token, probability]) => h("span", { title: probability.toFixed(3), style: `--vk-doubt: ${(85 * (1 - probability)).toFixed(0)}%` }, token.replaceAll("\n", "⏎\n")))
        : [turn.get("raw")]),
    );
  }

  function showPlace() {
    const running = turn.get("state") === "running";
    again.hidden = running || !host.last(turn);
    edit.hidden = running;
  }

  follow(turn, "state text parts items picture problem facts", showAnswer);
  follow(turn, "progress", showFacts);
  follow(turn, "tokens raw", showTokens);
  follow(turn, "thinking", () => thinking.replaceChildren(...(turn.get("thinking") ? [fold(t("Thinking"), h("pre", {}, turn.get("thinking")))] : [])));
  return { element, turn, light, update: showAnswer };
}

function timesOf(match) {
  if (match[2] !== undefined) return [60 * Number(match[1]) + Number(match[2])];
  return [match[3], match[4]].filter((time) => time !== undefined).map(Number);
}

// --- media: dropped, pasted, browsed, by address, samples -----------------------------------------

function mediaView(model, t, accepts) {
  const clip = accepts === "video";
  const tray = h("ul", { class: "vlkit-tray", "aria-label": clip ? t("The clip") : t("Pictures of the next question") });
  const note = h("div", { class: "vlkit-upload-note", "aria-live": "polite" });
  const input = h("input", { type: "file", multiple: model.get("head").several, accept: clip ? "video/*,image/gif,.mkv,.avi" : "image/*,.heic,.tif,.tiff", class: "vlkit-file", tabindex: "-1", "aria-label": t("Files") });
  input.addEventListener("change", () => take([...input.files]).then(() => (input.value = "")));
  const browse = iconButton({ icon: clip ? "play" : "image", label: t(clip ? "Choose a clip" : "Choose pictures"), text: t(clip ? "Choose a clip" : "Choose pictures"), class: "vlkit-browse", onclick: () => input.click() });
  const address = h("input", { type: "text", class: "vlkit-address", placeholder: t("or drop, paste, type a path or URL"), "aria-label": t("An address or path") });
  const sendAddress = () => {
    if (address.value.trim()) model.send({ do: "address", text: address.value.trim() });
    address.value = "";
  };
  address.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    sendAddress();
  });
  const row = h("div", { class: "vlkit-choose" }, tray, browse, address, input);
  const samples = fold(t("Samples"), h("ul", { class: "vlkit-samples-list" }));
  samples.classList.add("vlkit-samples");
  samples.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    const all = [...samples.querySelectorAll(".vlkit-sample")];
    const next = all[all.indexOf(document.activeElement) + step];
    if (!step || !all.includes(document.activeElement) || !next) return;
    event.preventDefault();
    for (const one of all) // its plus button, too
      for (const button of one.parentElement.children) button.tabIndex = one === next ? 0 : -1;
    next.focus();
  });

  follow(model, "media", () => {
    const media = model.get("media");
    tray.hidden = media.length === 0;
    redrawn(tray, media.map((card, index) => {
        const act = (name, label, message) => iconButton({ icon: name, label: t(label, { name: card.name }), onclick: () => model.send(message) });
        return h(
          "li", { class: card.problem ? "vlkit-bad" : "", title: t(card.problem) || null },
          card.thumb ? h("img", { src: card.thumb, alt: "" }) : h("span", { class: "vlkit-no-thumb" }, icon("close")),
          h("span", { class: "vlkit-tray-name" }, h("b", {}, card.name), h("small", {}, card.problem ? t("cannot be read") : card.about)),
          index > 0 ? act("left", "Move {name} forward", { do: "move", index, to: index - 1 }) : null,
          index < media.length - 1 ? act("right", "Move {name} back", { do: "move", index, to: index + 1 }) : null,
          act("close", "Remove {name}", { do: "remove", index }),
        );
      }), browse);
    const chosen = new Set(media.map((card) => card.name));
    for (const button of samples.querySelectorAll(".vlkit-sample"))
      button.setAttribute("aria-pressed", String(chosen.has(button.dataset.name)));
  });
  follow(model, "samples", () => {
    const cards = model.get("samples");
    samples.hidden = cards.length === 0;
    const chosen = new Set(model.get("media").map((card) => card.name));
    samples.querySelector("ul").replaceChildren(
      ...cards.map((card) => {
        const use = h("button", { type: "button", class: "vlkit-sample", title: `${card.name}: ${t("about") === "关于" ? card.about_zh : card.about}`, "aria-pressed": String(chosen.has(card.name)), onclick: (event) => model.send({ do: "sample", name: card.name, more: event.ctrlKey || event.metaKey || event.shiftKey }) }, h("img", { src: card.thumb, alt: "" }), h("span", {}, card.name.replaceAll("_", "_\u200b")));
        use.dataset.name = card.name;
        use.tabIndex = card === cards[0] ? 0 : -1; // one stop of Tab; arrows go on
        const more = model.get("head").several ? iconButton({ icon: "plus", label: t("Add {name} to the pictures", { name: card.name }), class: "vlkit-more", tabindex: use.tabIndex, onclick: () => model.send({ do: "sample", name: card.name, more: true }) }) : null;
        return h("li", {}, use, more);
      }),
    );
  });

  // --- files ---
  const upload = uploader(model);

  let arriving = Promise.resolve(); // done when no file is under way
  const take = (files) => (arriving = arriving.then(() => sendFiles(files)));

  async function sendFiles(files) {
    const problems = [];
    const several = model.get("head").several;
    if (!several && files.length > 1)
      problems.push(t("one file at a time: only {name} was taken", { name: files.at(-1).name }));
    for (const file of several ? files : files.slice(-1)) {
      const problem = await sendFile(file).catch((error) => `${file.name}: ${error.message}`);
      if (problem) problems.push(problem);
    }
    note.textContent = problems.join(" · ");
  }

  /** A file to the kernel in pieces; what there is to say about it, if anything. */
  async function sendFile(file) {
    const wanted = clip ? /^video\/|^image\/gif$/ : /^image\//;
    const names = clip ? /\.(mkv|avi|mov|mp4|m4v|webm|ogv|gif)$/i : /\.(heic|heif|tiff?|png|jpe?g|webp|bmp|gif)$/i;
    if (!wanted.test(file.type) && !names.test(file.name))
      return t(clip ? "{name} is not a clip, so it was not sent" : "{name} is not a picture, so it was not sent", { name: file.name });
    if (file.size > MOST) return t("{name} has {size} MB; at most 512 MB can be sent. Give its path or address instead", { name: file.name, size: mega(file.size) });
    let [content, said] = [file, ""];
    if (!clip && file.size > SHRINK_FROM) {
      const small = await shrink(file).catch(() => null);
      if (small) [content, said] = [small.blob, t("{name} ({size} MB) was made smaller for sending: {width} × {height} pixels", { name: file.name, size: mega(file.size), ...small })];
    }
    await upload(file.name, content, {}, (percent) => (note.textContent = t("Sending {name}: {percent} %", { name: file.name, percent })));
    return said;
  }

  async function shrink(file) {
    const picture = await createImageBitmap(file);
    const by = Math.min(1, SHRINK_TO / Math.max(picture.width, picture.height));
    const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * by)));
    const canvas = h("canvas", { width, height });
    canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    return { blob, width, height };
  }

  /** Files dropped on an element, or pasted in it, are chosen. */
  function accept(root) {
    acceptDrops(root, ({ dataTransfer }) => {
      const link = dataTransfer.getData("text/uri-list");
      if (dataTransfer.files.length) take([...dataTransfer.files]);
      else if (link) model.send({ do: "address", text: link.split("\n")[0].trim() });
    });
    root.addEventListener("paste", (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])];
      if (!pasted.length) return;
      event.preventDefault();
      event.stopPropagation();
      take(pasted);
    });
  }

  // where the picture or clip will be, while there is none
  const words = t(clip ? "Drop a clip here, or choose one" : "Drop a picture here, or choose one");
  const drop = h("button", { type: "button", class: "vlkit-drop", onclick: () => input.click() }, icon(clip ? "play" : "image"), words);
  follow(model, "media", () => (drop.hidden = model.get("media").some((card) => !card.problem)));
  /** When all that was chosen has arrived, an address that was only typed, too. */
  const settled = () => (sendAddress(), arriving);
  return { accept, samples, row, note, drop, settled };
}

// --- a clip: its player and the frames that the model sees ----------------------------------------

function clipView(model, t) {
  const player = h("div", { class: "vlkit-player" });
  const count = h("div", { class: "vlkit-count", "aria-live": "polite" });
  const strip = h("ol", { class: "vlkit-strip", "aria-label": t("Frames that the model sees") });
  let [video, address] = [null, ""];
  const seek = (time) => {
    if (!video) return;
    video.currentTime = time;
    video.play();
  };
  follow(model, "clip media", () => {
    const clip = model.get("clip");
    if (address) URL.revokeObjectURL(address);
    [video, address] = [null, ""];
    const unplayed = h("p", {}, t("A clip given by its path or address is not played here; its frames are below."));
    if (!clip.name) return player.replaceChildren(...(model.get("media").some((card) => !card.problem) ? [unplayed] : []));
    if (!clip.type) return player.replaceChildren(h("p", {}, t("Browsers do not play this kind of file; its frames are below.")));
    address = URL.createObjectURL(new Blob([clip.content], { type: clip.type }));
    if (clip.type === "image/gif") return player.replaceChildren(h("img", { src: address, alt: clip.name }));
    video = h("video", { src: address, controls: true, muted: true, playsinline: true, "aria-label": clip.name });
    const failed = () => player.replaceChildren(h("p", {}, t("Browsers do not play this kind of file; its frames are below.")));
    video.addEventListener("error", failed);
    player.replaceChildren(video);
  });
  follow(model, "count", () => {
    count.textContent = t(model.get("count"));
  });
  let marked = [];
  const show = () => {
    const frames = model.get("strip");
    strip.replaceChildren(
      ...frames.map((frame, i) => {
        const label = `${frame.time.toFixed(2)} s`;
        const end = frames[i + 1]?.time ?? Infinity;
        const on = marked.some(([from, to]) => frame.time <= to && from < end);
        return h("li", { class: on ? "vlkit-marked" : "" }, h("button", { type: "button", title: t("Play from here"), onclick: () => seek(frame.time) }, h("img", { src: frame.thumb, alt: "" }), h("span", {}, label)));
      }),
    );
  };
  const mark = (text) => {
    marked = [...text.matchAll(TIME)].map(timesOf).map((times) => [times[0], times.at(-1)]);
    show();
  };
  follow(model, "strip", show);
  return { element: h("div", { class: "vlkit-clip" }, player, h("div", {}, count, strip)), seek, mark };
}

// --- the panel ------------------------------------------------------------------------------------

export const panel = {
  async render({ model, el }) {
    const t = translator(model.get("language"));
    const variant = model.get("variant");
    const manager = model.widget_manager;
    const child = (address) => manager.get_model(address.replace("IPY_MODEL_", ""));
    const unanswered = unansweredLine(model, t);
    const controls = controlsOf(model, t);
    const root = h("section", { class: `vlkit vlkit-framed vlkit-${variant} vlkit-talk`, "aria-label": t(model.get("head").title), "data-lm-suppress-shortcuts": "true" });
    el.append(root);

    // the head
    const head = h("header", { class: "vlkit-head" });
    const clear = iconButton({ icon: "clear", label: t("Clear the conversation"), text: t("Clear"), class: "vlkit-clear", onclick: () => (controls.click("clear_button"), prompt.input.focus()) });
    follow(model, "head", () => {
      const { title, model: name, device, memory, about } = model.get("head");
      const facts = [name, device, memory && t("{memory} free", { memory })].filter(Boolean);
      head.replaceChildren(h("h3", {}, t(title)), h("span", { class: "vlkit-facts-of-model", title: about }, facts.join(" · ")), clear);
    });

    // the question
    const prompt = controls.element("prompt");
    const ask = iconButton({ icon: "send", label: t("Ask (Ctrl+Enter)"), text: t("Ask"), class: "vlkit-primary vlkit-ask-button" });
    const stop = iconButton({ icon: "stop", label: t("Stop (Esc)"), text: t("Stop"), class: "vlkit-stop-button" });
    const doAsk = async () => {
      prompt.input.flush();
      prompt.input.select(); // the next question is typed in its place
      await media.settled();
      controls.click("ask_button");
    };
    ask.addEventListener("click", doAsk);
    stop.addEventListener("click", () => controls.click("stop_button"));
    controls.connect("ask_button", (now) => (ask.disabled = now.disabled));
    controls.connect("stop_button", (now) => { // one place for both
      const focused = [ask, stop].includes(root.ownerDocument.activeElement);
      stop.disabled = stop.hidden = now.disabled;
      ask.hidden = !now.disabled;
      if (focused) (now.disabled ? ask : stop).focus();
    });
    const isChinese = (text) => /[\u4e00-\u9fff]/.test(text);
    const chinese = isChinese(t("Ask"));
    const examples = h("div", { class: "vlkit-examples", role: "group", "aria-label": t("Examples") });
    controls.connect("examples", (now) =>
      redrawn(examples, now.options.toSorted((a, b) => chinese && isChinese(b) - isChinese(a)).map((text) => h("button", { type: "button", class: "vlkit-example", lang: isChinese(text) ? "zh" : "en", "aria-pressed": String(now.value === text), onclick: () => controls.set("examples", text) }, text))),
    );
    const first = controls.spec("examples").options;
    const firstChinese = first.find(isChinese);
    if (chinese && firstChinese && !model.get("turns").length && prompt.input.value === first[0]) controls.set("examples", firstChinese);
    const editing = h("div", { class: "vlkit-editing", role: "status" });
    follow(model, "editing", () => {
      const index = model.get("editing");
      const cancel = h("button", { type: "button", class: "vlkit-button", onclick: () => (model.send({ do: "edit", turn: -1 }), prompt.input.focus()) }, t("Cancel"));
      editing.replaceChildren(...(index < 0 ? [] : [t("Question {number} is edited; the answers from there on are replaced.", { number: index + 1 }), cancel]));
      if (index >= 0) prompt.input.focus();
    });
    const status = statusLine(await child(model.get("status")), t);
    const options = h("div", { class: "vlkit-options" });
    for (const name of controls.names())
      if (controls.spec(name).fold === "Options") options.append(controls.element(name).element);
    const optionsFold = fold(t("Options"), options);
    optionsFold.classList.add("vlkit-options-fold");
    const code = codeView(t, () => model.get("shown_code"));
    follow(model, "shown_code", code.update);
    const media = mediaView(model, t, variant === "video" ? "video" : "image");
    const hint = h("span", { class: "vlkit-hint" }, t("Ctrl+Enter asks, Esc stops"));
    const composer = h(
      "div", { class: "vlkit-composer" },
      media.samples, editing,
      h("div", { class: "vlkit-box" }, media.row, h("div", { class: "vlkit-ask-row" }, prompt.element, ask, stop)),
      media.note, examples, unanswered, h("div", { class: "vlkit-below" }, status, hint), h("div", { class: "vlkit-below" }, optionsFold, fold(t("The same in plain Python"), code.element)),
    );

    // the conversation
    const list = h("ol", { class: "vlkit-turns", role: "log", "aria-label": t("Questions and answers") });
    const views = new Map(); // by the address of the turn's model
    const host = { t, model, index: (turn) => model.get("turns").indexOf(`IPY_MODEL_${turn.model_id}`) };
    host.last = (turn) => host.index(turn) === model.get("turns").length - 1;

    // what each panel has of its own
    let main = null;
    if (variant === "grounding") {
      const picture = h("div", { class: "vlkit-main-picture" }, media.drop);
      const lightAll = (index) => views.forEach((view) => host.index(view.turn) === model.get("shown") && view.light(index));
      host.canvas = canvasOf(await child(model.get("canvas")), picture, t, lightAll);
      picture.append(boxBar(controls, t));
      main = picture;
      model.on("change:shown", () => views.forEach((view) => view.update()));
    }
    let clip = null;
    if (variant === "video") {
      clip = clipView(model, t);
      host.seek = clip.seek;
      const sampling = h("div", { class: "vlkit-options vlkit-sampling" }, ...["fps", "max_frames", "part"].map((name) => controls.element(name).element));
      main = h("div", { class: "vlkit-main-picture" }, media.drop, clip.element, sampling);
    }
    // the last answer's end, but never past its question
    const down = () => requestAnimationFrame(() => {
      const last = list.lastChild;
      if (last) list.scrollTo({ top: Math.min(list.scrollHeight, last.offsetTop - list.offsetTop - 4) });
    });
    let shown = 0; // of several updates under way, only the last one counts
    const showTurns = async () => {
      const number = (shown += 1);
      const addresses = model.get("turns");
      const models = await Promise.all(addresses.map(child));
      if (number !== shown) return;
      for (const address of views.keys()) if (!addresses.includes(address)) views.delete(address);
      addresses.forEach((address, i) => {
        if (!views.has(address)) {
          const view = turnView(models[i], host);
          views.set(address, view);
          if (clip) follow(models[i], "parts", () => host.last(models[i]) && clip.mark(models[i].get("parts").map(([part]) => part).join("")));
          models[i].on("change:text change:state change:picture", () => list.lastChild === view.element && down());
        }
      });
      list.replaceChildren(...addresses.map((address) => views.get(address).element));
      list.hidden = clear.hidden = addresses.length === 0;
      views.forEach((view) => view.update());
      down();
      if (addresses.length) media.samples.open = false;
    };
    model.on("change:turns", showTurns);
    media.samples.open = model.get("turns").length === 0 && variant !== "video";

    // a saved notebook shows its last answer without the panel; here the panel is alive
    const saved = h("style");
    follow(model, "saved_id", () => {
      const id = model.get("saved_id");
      if (id) saved.textContent = `.jp-OutputArea-child:has(#${id}), #${id} { display: none !important; }`;
    });
    root.append(saved, head, ...(main ? [h("div", { class: "vlkit-columns" }, main, h("div", { class: "vlkit-side" }, list, composer))] : [list, composer]));
    media.accept(root);
    await showTurns();

    // keys
    root.addEventListener("keydown", (event) => {
      const asks = event.key === "Enter" && (event.ctrlKey || event.metaKey);
      const stops = event.key === "Escape" && !stop.disabled;
      if (!asks && !stops) return;
      event.preventDefault();
      event.stopPropagation();
      if (asks) doAsk();
      else controls.click("stop_button");
    });
    saveFiles(model);
  },
};

/** The buttons under the picture of the grounding panel. */
function boxBar(controls, t) {
  const button = (name, picture) => {
    const label = t(controls.spec(name).label);
    const made = iconButton({ icon: picture, label, text: label, class: `vlkit-${name.replaceAll("_", "-")}`, onclick: () => controls.click(name) });
    controls.connect(name, (now) => (made.disabled = now.disabled));
    return made;
  };
  const truth = iconButton({ icon: "truth", label: t("Show the true boxes"), text: t("Truth"), class: "vlkit-show-truth" });
  truth.addEventListener("click", () => controls.set("show_truth", !controls.spec("show_truth").value));
  controls.connect("show_truth", (now) => {
    truth.disabled = now.disabled;
    truth.setAttribute("aria-pressed", String(now.value));
  });
  const threshold = controls.element("threshold").element;
  return h("div", { class: "vlkit-box-bar" }, button("ask_box_button", "box"), truth, button("export_button", "save"), threshold);
}

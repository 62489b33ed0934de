// LoraPanel: the data before, the curves during, and what can be done after a training run.

import { fold, h, redrawn } from "./controls.js";
import { actionButton, boxedPicture, duration, filePicker, grouped, panelFrame, svgElement } from "./work.js";

const RUN_COLOURS = ["var(--vk-blue)", "var(--vk-orange)", "var(--vk-green)", "var(--vk-pink)", "var(--vk-yellow)", "var(--vk-grey)"];
const SMOOTHED = 12; // points from which on a line is drawn with its running mean
const gigabytes = (bytes) => (bytes / 1e9).toFixed(1);

function niceStep(most, parts, digits = [1, 2, 2.5, 5, 10]) {
  const rough = Math.max(most / parts, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  return digits.map((digit) => digit * power).find((step) => step >= rough);
}

function runningMean(points) {
  const reach = Math.max(1, Math.floor(points.length / 40));
  return points.map(([step], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [step, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}

/** A chart with a legend: lines are { name, color, dashed, points: [[step, value], …] }. */
function lineChart(title, id, lines, steps, top, t) {
  const [width, height, left, bottom] = [330, 190, 38, 34];
  const shown = lines.filter((line) => line.points.length);
  const all = shown.flatMap((line) => line.points);
  const lastStep = Math.max(1, steps, ...all.map(([step]) => step));
  const highest = top ?? (Math.max(0, ...all.map(([, value]) => value)) * 1.05 || 1);
  const x = (step) => left + ((width - left - 12) * step) / lastStep;
  const y = (value) => height - bottom - ((height - bottom - 8) * value) / highest;
  const holder = h("div");
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t(title) }, holder);
  const text = (at, down, words, anchor) => {
    svgElement("text", { x: at, y: down, "text-anchor": anchor }, svg).textContent = words;
  };
  const up = niceStep(highest, 4);
  for (let value = 0; value <= highest + 1e-9; value += up) {
    svgElement("line", { x1: left, x2: width - 12, y1: y(value), y2: y(value), class: "vlkit-grid" }, svg);
    text(left - 6, y(value) + 4, `${Number(value.toPrecision(3))}`, "end");
  }
  const along = Math.max(1, niceStep(lastStep, 4, [1, 2, 5, 10]));
  for (let step = 0; step <= lastStep; step += along) text(x(step), height - 16, grouped(step), "middle");
  text(width - 12, height - 2, t("steps"), "end");
  for (const { points, color, dashed, part } of shown) {
    const path = (some) => some.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)},${y(value).toFixed(1)}`).join("");
    const smooth = !dashed && points.length > SMOOTHED;
    const group = svgElement("g", { id: `${id}-${part}`, style: `--line: ${color}` }, svg);
    if (smooth) svgElement("path", { d: path(points), class: "vlkit-curve vlkit-curve-raw" }, group);
    svgElement("path", { d: path(smooth ? runningMean(points) : points), class: `vlkit-curve ${dashed ? "vlkit-curve-dashed" : ""}` }, group);
    if (dashed || points.length < 3)
      for (const [step, value] of points) {
        const dot = svgElement("circle", { cx: x(step), cy: y(value), r: 3.5, class: "vlkit-dot" }, group);
        svgElement("title", {}, dot).textContent = t("step {n}: {value}", { n: step, value: value.toPrecision(3) });
      }
  }
  const legend = shown.map(({ name, color, dashed }) => {
    const sample = h("span");
    const key = svgElement("svg", { viewBox: "0 0 26 8", class: "vlkit-key", "aria-hidden": "true", style: `--line: ${color}` }, sample);
    svgElement("path", { d: "M1,4H25", class: `vlkit-curve ${dashed ? "vlkit-curve-dashed" : ""}` }, key);
    return h("span", {}, key, " ", name);
  });
  return h("figure", { class: "vlkit-chart" }, h("figcaption", {}, h("b", {}, t(title)), ...legend), svg);
}

/** Loss and right answers of runs; of a single run its parts are named, of several the runs. */
function charts(runs, t) {
  const entries = Object.entries(runs);
  const alone = entries.length === 1;
  const steps = Math.max(0, ...entries.map(([, curves]) => curves.steps));
  const line = (part, dashed) => ([name, curves], i) => ({
    part: alone ? part : `${part}-${i}`, dashed, points: curves[part],
    name: alone ? t({ losses: "training", evaluations: "held-out", metrics: "held-out" }[part]) : `${name}${dashed && part !== "metrics" ? ` (${t("held-out")})` : ""}`,
    color: alone ? RUN_COLOURS[dashed ? 1 : 0] : RUN_COLOURS[i % RUN_COLOURS.length],
  });
  const loss = [...entries.map(line("losses", false)), ...entries.map(line("evaluations", true))];
  const made = [lineChart("Loss", "loss", loss, steps, null, t)];
  if (entries.some(([, curves]) => curves.metrics.length))
    made.push(lineChart("Right answers", "metric", entries.map(line("metrics", true)), steps, 1, t));
  return h("div", { class: "vlkit-charts" }, ...made);
}

function table(heads, rows, classes = "") {
  return h("div", { class: "vlkit-scroll" },
    h("table", { class: `vlkit-table ${classes}` },
      h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell)))))));
}

const same = (one, other) => one.trim().toLowerCase() === other.trim().toLowerCase();

export const lora = {
  render: (context) => panelFrame(context, "lora", ({ model, t, controls, status }) => {
    const field = (name) => controls.element(name).element;
    const view = () => model.get("view");
    const { main = [], knobs = [] } = view();
    const files = filePicker(model, t, controls, { accept: ".json,.jsonl,.csv,.parquet,image/*", folders: false,
      title: "A file of conversations, together with its pictures" });
    const cost = h("div", { class: "vlkit-cost", role: "status" });
    const invitation = h("div", { class: "vlkit-invitation" },
      h("b", {}, t("Teach the model with your own examples")),
      h("p", {}, t("Choose a file of conversations about pictures: .json, .jsonl, .csv or .parquet. A row looks like this:")),
      h("pre", { class: "vlkit-code" }, '{"messages": [\n  {"role": "user", "content": "<image>What is this?"},\n  {"role": "assistant", "content": "A ripe tomato."}],\n "images": ["tomato.jpg"]}'),
      h("p", { class: "vlkit-faint" }, t("You will see the rows, what a run costs, and the curves here. Twenty rows are enough to try it.")));
    const preview = h("ol", { class: "vlkit-preview" });
    const dataFold = fold(t("Your data"), preview);
    dataFold.open = true;
    const bar = h("progress", { max: 1, value: 0, "aria-label": t("Progress") });
    const stepText = h("span", { class: "vlkit-steps", role: "status" });
    const monitor = h("div", { class: "vlkit-progress" }, bar, stepText);
    const curves = h("div", { class: "vlkit-curves" });
    const answers = h("div");
    const picked = h("div", { class: "vlkit-picked" });
    const tried = h("div", { class: "vlkit-tried" });
    const compared = h("div", { class: "vlkit-compared" });
    const after = h("section", { class: "vlkit-after" },
      h("b", {}, t("Try the adapter")),
      h("div", { class: "vlkit-try" }, picked, h("div", { class: "vlkit-work-side" }, field("question"), h("div", { class: "vlkit-row-of-buttons" }, actionButton(controls, "ask_button", t)))),
      tried,
      h("div", { class: "vlkit-row-of-buttons" }, actionButton(controls, "compare_button", t), actionButton(controls, "merge_button", t), actionButton(controls, "export_button", t)),
      compared);
    const savedList = h("div", { class: "vlkit-saved-list" });
    const comparison = h("div", { class: "vlkit-comparison" });
    const savedFold = fold(t("Saved runs"), savedList, comparison);
    savedFold.classList.add("vlkit-saved");

    const drawPicked = () => {
      const row = view().rows?.[controls.spec("row").value];
      picked.replaceChildren(row?.picture ? boxedPicture(row.picture, [], "") : "");
    };
    const choose = (index) => {
      controls.set("row", index);
      controls.set("question", view().rows[index].question);
    };
    const drawPreview = () => {
      const rows = view().rows ?? [];
      preview.replaceChildren(...rows.map((row, index) =>
        h("li", {},
          h("button", { type: "button", class: "vlkit-thumb", onclick: () => choose(index), "aria-label": t("Use row {n} to try the adapter", { n: index + 1 }) },
            row.picture ? boxedPicture(row.picture, [], "") : ""),
          h("div", {}, h("div", { class: "vlkit-row-asked" }, row.question),
            h("div", {}, h("mark", { title: t("The model learns these words") }, row.answer))))));
      dataFold.hidden = !rows.length;
    };
    const drawCost = () => {
      const now = view().cost;
      cost.hidden = !now;
      if (!now) return cost.replaceChildren();
      const lines = [
        t("{rows} rows, {held} held out, {tokens} tokens at most", { rows: grouped(now.rows), held: grouped(now.held_out), tokens: grouped(now.tokens) }),
        t("{n} weights trained ({share}%)", { n: grouped(now.trained), share: (100 * now.share).toFixed(1) }),
        t("about {memory} of {available} GB {place}", { memory: gigabytes(now.memory), available: Math.round(now.available / 1e9), place: now.place }),
        t("{n} steps in about {time}", { n: grouped(now.steps), time: duration(now.seconds, t) }),
      ];
      cost.className = `vlkit-cost ${now.fits ? "" : "vlkit-error"}`;
      cost.replaceChildren(...lines.map((line) => h("div", {}, line)));
    };
    const drawCurves = () => {
      const now = model.get("curves");
      const some = now.losses?.length || now.evaluations?.length;
      curves.replaceChildren(some ? charts({ run: now }, t) : "");
      const samples = (now.samples ?? []).map(([question, truth, answer]) => [question, truth, answer, same(truth, answer) ? "✓" : ""]);
      answers.replaceChildren(samples.length
        ? h("div", {}, h("b", {}, t("Held-out answers, at the last evaluation")), table([t("question"), t("truth"), t("answer"), ""], samples)) : "");
    };
    const drawProgress = () => {
      const { step, steps, left, memory } = model.get("progress");
      monitor.hidden = step === undefined;
      if (monitor.hidden) return;
      Object.assign(bar, { max: steps, value: step });
      const parts = [t("step {n} of {m}", { n: grouped(step), m: grouped(steps) })];
      if (left !== null && step < steps) parts.push(t("{time} left", { time: duration(left, t) }));
      parts.push(t("{n} GB in use", { n: gigabytes(memory) }));
      stepText.textContent = parts.join(", ");
    };
    const drawSaved = () => {
      const spec = controls.spec("saved");
      savedFold.hidden = !spec.options.length;
      redrawn(savedList, spec.options.map((path) => {
        const box = h("input", { type: "checkbox", checked: spec.value.includes(path) });
        box.addEventListener("change", () => controls.set("saved", spec.options.filter((other) => other === path ? box.checked : spec.value.includes(other))));
        return h("label", { class: "vlkit-inline" }, box, path.split(/[\\/]/).at(-1));
      }));
      after.hidden = !(spec.options.length && (view().rows ?? []).length);
    };
    /** The knobs as they were in a saved run, whose arguments are Python's texts. */
    const useArguments = (run) => {
      for (const [name, text] of Object.entries(run.arguments)) {
        const spec = knobs.includes(name) && !["output_dir", "resume"].includes(name) ? controls.spec(name) : {};
        const meant = (value) => (value === null ? text === "None" : typeof value === "number" ? value === Number(text) : value === text);
        if (spec.kind === "toggle") controls.set(name, text === "True");
        else if (spec.kind === "number") controls.set(name, Number(text) || 0);
        else if (spec.kind === "text") controls.set(name, text);
        else if (spec.kind === "choice") {
          const option = spec.options.map((one) => (Array.isArray(one) ? one : [one, one])).find(([, value]) => meant(value));
          if (option) controls.set(name, option[1]);
        }
      }
    };
    const drawComparison = () => {
      const runs = view().saved ?? [];
      if (!runs.length) return comparison.replaceChildren();
      const names = [...new Set(runs.flatMap((run) => Object.keys(run.arguments)))];
      setTimeout(allowUse);
      const differing = names.filter((name) => new Set(runs.map((run) => run.arguments[name])).size > 1);
      const last = (points) => (points.length ? points.at(-1)[1].toPrecision(3) : "");
      comparison.replaceChildren(
        charts(Object.fromEntries(runs.map((run) => [run.name, run.curves])), t),
        table([t("run"), ...differing, t("last loss"), t("held-out loss"), t("right answers"), ""],
          runs.map((run) => [run.name, ...differing.map((name) => run.arguments[name] ?? ""), last(run.curves.losses), last(run.curves.evaluations), last(run.curves.metrics),
            h("button", { type: "button", class: "vlkit-button", "aria-label": t("Use the arguments of {name}", { name: run.name }), onclick: () => useArguments(run) }, t("Use its arguments"))])));
    };
    const drawAfter = () => {
      const { tried: answer, comparison: both } = view();
      tried.replaceChildren(answer ? table([t("question"), t("before"), t("after")], [[answer.question, answer.before, answer.after]]) : "");
      compared.replaceChildren(both
        ? h("div", {}, h("p", {}, t("Right answers: {before} before, {after} after", Object.fromEntries(
              Object.entries(both.scores).map(([name, score]) => [name === "base" ? "before" : name, `${Math.round(100 * score)}%`])))),
            table([t("question"), t("truth"), t("before"), t("after")], both.rows.map((row) => row.slice(1)))) : "");
    };
    const draw = () => {
      invitation.hidden = (view().rows ?? []).length > 0;
      drawCost();
      drawPreview();
      drawPicked();
      drawSaved();
      drawComparison();
      drawAfter();
    };
    model.on("change:view", draw);
    model.on("change:curves", drawCurves);
    model.on("change:progress", drawProgress);
    controls.connect("saved", drawSaved);
    const allowUse = () => comparison.querySelectorAll("button").forEach((button) => (button.disabled = controls.spec("start_button").disabled));
    controls.connect("start_button", allowUse);
    controls.connect("row", drawPicked);
    draw();
    drawCurves();
    drawProgress();
    return {
      title: "Fine-tune with LoRA",
      side: [
        field("source"), files, field("held_out"),
        h("div", { class: "vlkit-pairs" }, ...main.map(field)),
        fold(t("More arguments"), h("div", { class: "vlkit-options" }, ...knobs.filter((name) => !main.includes(name)).map(field))),
        cost,
        h("div", { class: "vlkit-row-of-buttons" }, actionButton(controls, "start_button", t, "vlkit-primary"), actionButton(controls, "pause_button", t), actionButton(controls, "stop_button", t)),
        status,
      ],
      main: [invitation, monitor, curves, answers, after, dataFold, savedFold],
    };
  }),
};

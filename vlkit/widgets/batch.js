// BatchPanel: a table of rows with their pictures, answers and states; a row enlarged.

import { controlsOf, fold, h, iconButton } from "./controls.js";
import { actionButton, boxedPicture, duration, filePicker, grouped, panelFrame } from "./work.js";

const ROW_STATES = { // a sign, and the word for it; never colour alone
  new: ["", "not asked yet"], waiting: ["◷", "waiting"], running: ["", "running"],
  done: ["✓", "done"], failed: ["✕", "failed"], stopped: ["■", "stopped"],
};
const ACCEPTED = ".csv,.tsv,.jsonl,.json,.parquet,image/*";

/** The answer's words, its named things in the colours of their boxes. */
function answerText(row) {
  const mark = ([text, numbers]) => {
    const item = row.items[numbers[0]];
    return item ? h("mark", { style: `--item: ${item.color}` }, text) : text;
  };
  return h("span", {}, ...row.parts.map(mark));
}

function stateOf(row, t) {
  const [sign, word] = ROW_STATES[row.state];
  return h("span", { class: `vlkit-state vlkit-state-${row.state}` }, h("span", { "aria-hidden": "true" }, sign), " ", t(word));
}

function answerOf(row, t) {
  if (row.problem) return h("div", { class: "vlkit-error" }, t(row.problem));
  return h("div", { class: "vlkit-row-answer" }, row.parts.length ? answerText(row) : "");
}

export const batch = {
  render: (context) => panelFrame(context, "batch", ({ model, t, controls, status }) => {
    const field = (name) => controls.element(name).element;
    const rows = h("ol", { class: "vlkit-rows" });
    const counts = h("div", { class: "vlkit-counts", role: "status" });
    const bar = h("progress", { max: 1, value: 0, "aria-label": t("Progress") });
    const pageText = h("span", { class: "vlkit-page-text", role: "status" });
    const step = (by) => controls.set("page", controls.spec("page").value + by);
    const back = iconButton({ icon: "left", label: t("Previous page"), onclick: () => step(-1) });
    const next = iconButton({ icon: "right", label: t("Next page"), onclick: () => step(1) });
    const saved = h("div", { class: "vlkit-saved", role: "status", "aria-live": "polite" });
    const columns = h("div", { class: "vlkit-columns-line vlkit-faint" });
    const note = h("div", { class: "vlkit-note vlkit-faint" });
    const earlier = h("div", { class: "vlkit-earlier", role: "status" });
    const large = h("dialog", { class: "vlkit-large", tabindex: "-1", "aria-label": t("Enlarged row") });
    let [savedText, savedRows] = ["", 0];
    let opened = null; // the index of the row that is enlarged
    let shown = new Map(); // index of a row to what of it is drawn

    const sameForAll = (row) => row.question === controls.spec("prompt").value.trim();
    const drawRow = (row) => {
      const picture = model.get("pictures")[row.index];
      const key = JSON.stringify([row, picture?.src.length]);
      const old = shown.get(row.index);
      if (old?.key === key) return old;
      const open = () => enlarge(row.index);
      const image = picture
        ? h("button", { type: "button", class: "vlkit-thumb", "aria-label": t("Enlarge row {n}", { n: row.number }), onclick: open },
            boxedPicture(picture, row.items, row.name))
        : h("span", { class: "vlkit-thumb vlkit-no-picture" });
      const facts = [row.name, row.seconds ? t("{n} s", { n: row.seconds }) : "", row.tokens ? t("{n} tokens", { n: row.tokens }) : "", row.cut ? t("cut off at the longest length") : ""];
      const element = h("li", { class: "vlkit-row-grid", "data-state": row.state },
        h("span", { class: "vlkit-row-number" }, `${row.number}`), image,
        h("div", { class: "vlkit-row-text" },
          sameForAll(row) ? "" : h("div", { class: "vlkit-row-asked" }, row.question), answerOf(row, t),
          h("div", { class: "vlkit-row-facts" }, facts.filter(Boolean).join(" · "))),
        stateOf(row, t));
      return { key, element };
    };

    const drawLarge = () => {
      const { rows: all = [] } = model.get("view");
      const place = all.findIndex((row) => row.index === opened);
      if (place < 0) return large.close();
      const row = all[place];
      const picture = model.get("large").index === opened ? model.get("large") : model.get("pictures")[opened];
      const go = (by) => all[place + by] && enlarge(all[place + by].index);
      const button = (picture_, label, action, off) => {
        const made = iconButton({ icon: picture_, label: t(label), onclick: action });
        made.disabled = off;
        return made;
      };
      large.replaceChildren(
        h("header", {}, h("b", {}, t("Row {n}", { n: row.number })), stateOf(row, t), h("span", { class: "vlkit-space" }),
          button("left", "Previous row", () => go(-1), place === 0),
          button("right", "Next row", () => go(1), place === all.length - 1),
          button("close", "Close", () => large.close(), false)),
        picture ? boxedPicture(picture, row.items, row.name) : "",
        h("div", { class: "vlkit-row-asked" }, row.question), answerOf(row, t),
        h("div", { class: "vlkit-row-facts" }, row.name));
      if (large.open && !large.contains(document.activeElement)) large.focus(); // the pressed button is gone
      large.onkeydown = (event) => ({ ArrowLeft: () => go(-1), ArrowRight: () => go(1) })[event.key]?.();
    };
    const enlarge = (index) => {
      opened = index;
      model.send({ do: "enlarge", index });
      drawLarge();
      if (!large.open) large.showModal();
    };
    large.addEventListener("click", (event) => event.target === large && large.close());

    const draw = () => {
      const view = model.get("view");
      if (!view.rows) return;
      shown = new Map(view.rows.map((row) => [row.index, drawRow(row)]));
      const elements = [...shown.values()].map((each) => each.element);
      if (elements.length !== rows.children.length || elements.some((each, i) => rows.children[i] !== each))
        rows.replaceChildren(...elements);
      if (!elements.length) rows.replaceChildren(h("li", { class: "vlkit-no-rows" }, t(view.total ? "No row matches." : "Choose a folder of pictures or a table.")));
      const done = view.counts.done + view.counts.failed;
      Object.assign(bar, { max: Math.max(1, view.total), value: done });
      bar.hidden = !view.total;
      const parts = [t("{done} of {total} rows, {failed} failed", { done: grouped(done), total: grouped(view.total), failed: grouped(view.counts.failed) })];
      if (view.counts.running) parts.push(t("{n} running", { n: grouped(view.counts.running) }));
      if (view.left !== null) parts.push(t("{time} left", { time: duration(view.left, t) }));
      counts.textContent = view.total ? parts.join(", ") : "";
      const page = controls.spec("page");
      pageText.textContent = t("page {n} of {m}", { n: page.value, m: page.max });
      back.disabled = page.value <= 1;
      next.disabled = page.value >= page.max;
      columns.textContent = view.columns ? t("{n} rows; columns {names}", { n: grouped(view.total), names: view.columns }) : "";
      note.textContent = t(view.note);
      const [source, question] = ["source", "prompt"].map((name) => controls.spec(name).value);
      const [oldSource, oldQuestion] = view.answered ?? [source, question];
      earlier.textContent = oldSource !== source ? t("The answers about {source} are kept: choose it again to see them.", { source: oldSource })
        : oldQuestion !== question ? t("These answers are to “{question}”; Start asks the new question instead.", { question: oldQuestion }) : "";
      if (view.saved !== savedText) [savedText, savedRows] = [view.saved, done];
      const since = view.saved && !view.saved_failed && done > savedRows && t("{n} more since; save again", { n: grouped(done - savedRows) });
      saved.textContent = [t(view.saved), since].filter(Boolean).join("; ");
      saved.classList.toggle("vlkit-error", view.saved_failed);
      if (large.open) drawLarge();
    };
    model.on("change:view change:pictures", draw);
    model.on("change:large", () => large.open && drawLarge());
    for (const name of ["page", "source", "prompt"]) controls.connect(name, draw);
    draw();
    const english = "Describe this image."; // as BatchPanel begins
    if (t("Ask") !== "Ask" && controls.spec("prompt").value === english && !model.get("view").answered) controls.set("prompt", t(english));
    const files = filePicker(model, t, controls, { accept: ACCEPTED, folders: true,
      title: "A table, pictures, or a table with its pictures; they can also be dropped here" });
    return {
      title: "Ask about many pictures",
      side: [
        field("source"), files, field("prompt"), columns, note,
        h("div", { class: "vlkit-row-of-buttons" }, actionButton(controls, "start_button", t, "vlkit-primary"), actionButton(controls, "stop_button", t)),
        status,
        fold(t("Options"), h("div", { class: "vlkit-options" }, field("max_new_tokens"), field("out"))),
        h("div", { class: "vlkit-save-line" }, field("save_as"), actionButton(controls, "save_button", t), actionButton(controls, "download_button", t)), saved,
      ],
      main: [
        h("div", { class: "vlkit-progress" }, bar, counts),
        h("div", { class: "vlkit-toolbar" }, field("shown"), field("order"), field("search"),
          h("span", { class: "vlkit-pager" }, back, pageText, next)),
        earlier, rows, large,
      ],
    };
  }),
};

// ModelChooser: known models with their size, the options in a fold, a question before a download.

import { fold, h, icon } from "./controls.js";
import { actionButton, panelFrame } from "./work.js";

const sizeText = (bytes, t) => (bytes >= 1e9 ? t("{n} GB", { n: (bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0) }) : t("{n} MB", { n: Math.round(bytes / 1e6) }));
const FITS = { yes: ["✓", "fits here"], "4bit": ["◐", "fits with 4bit"], no: ["✕", "too large"] };

export const chooser = {
  render: (context) => panelFrame(context, "chooser", ({ model, t, controls, status }) => {
    const field = (name) => controls.element(name).element;
    const view = () => model.get("view");
    const chosen = h("div", { class: "vlkit-chosen", role: "status" });
    const list = h("div", { class: "vlkit-models", role: "radiogroup", "aria-label": t("Known models") });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const cards = [...list.children];
      const next = step && cards[cards.indexOf(document.activeElement) + step];
      if (!next) return;
      event.preventDefault();
      next.click();
      next.focus();
    });
    const memory = h("div", { class: "vlkit-faint" });
    const question = h("div", { class: "vlkit-question-box", role: "alertdialog" });
    const progress = h("pre", { class: "vlkit-faint" });
    const tried = h("div", { class: "vlkit-tried" });
    const download = actionButton(controls, "download_button", t, "vlkit-primary");
    const cancel = h("button", { type: "button", class: "vlkit-button", onclick: () => (question.hidden = true) }, t("Cancel"));
    const words = h("p");
    question.append(words, h("div", { class: "vlkit-row-of-buttons" }, download, cancel));
    let drawn = "";
    let asked = "null";

    const drawModels = () => {
      const { models, free, place } = view();
      const now = JSON.stringify([models, controls.spec("model").value]);
      if (now === drawn) return;
      drawn = now;
      const focused = list.contains(document.activeElement) && document.activeElement.dataset.name;
      list.replaceChildren(...models.map(({ name, bytes, needed, fits, here }, i) => {
        const is = name === controls.spec("model").value;
        const [sign, verdict] = FITS[fits];
        return h("button", { type: "button", role: "radio", "aria-checked": `${is}`, class: "vlkit-model-card", "data-name": name, tabindex: is || (i === 0 && !models.some((one) => one.name === controls.spec("model").value)) ? "0" : "-1", onclick: () => controls.set("model", name) },
          h("b", {}, name), h("span", {}, here ? t("on this machine") : t("{size} to download", { size: sizeText(bytes, t) })),
          h("span", {}, t("{size} of memory", { size: sizeText(needed, t) })),
          h("span", { class: `vlkit-fits-${fits}` }, h("span", { "aria-hidden": "true" }, `${sign} `), t(verdict)));
      }));
      if (focused) list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
      memory.textContent = free ? t("{size} of {place} free here; pictures need 1 to 2 GB more than the weights.", { size: sizeText(free, t), place }) : t("Computing what fits here …");
    };
    const draw = () => {
      const { chosen: choice, tried: answer, question: ask, progress: line } = view();
      chosen.replaceChildren(...(choice
        ? [h("code", {}, "vlkit.load()"), " = ", h("code", {}, choice.call), " — ", choice.source ? t("chosen by {source}", { source: choice.source }) : t("the bundled model; nothing is remembered")] : []));
      const now = JSON.stringify(ask ?? null); // each change of the view brings a new object
      if (asked !== now) {
        asked = now;
        question.hidden = !ask;
        if (ask) {
          const size = ask.bytes ? t("about {size}", { size: sizeText(ask.bytes, t) }) : t("an unknown number of GB");
          words.textContent = t("{name} is not on this machine. To try it, {size} are downloaded.", { name: ask.name, size });
          download.focus();
        }
      }
      progress.textContent = line ?? "";
      if (tried.dataset.html !== answer) {
        tried.dataset.html = answer ?? "";
        tried.innerHTML = answer ?? ""; // a Reply's own HTML, whose texts are escaped
        if (answer) tried.prepend(h("p", { class: "vlkit-row-asked" }, view().asked));
      }
      drawModels();
    };
    question.hidden = true;
    model.on("change:view", draw);
    controls.connect("model", drawModels);
    draw();
    const button = (name, style) => actionButton(controls, name, t, style);
    return {
      title: "Choose the model for all notebooks",
      side: [
        field("model"),
        fold(t("Options: device, quantize …"), h("div", { class: "vlkit-options" }, ...(view().options ?? []).map(field))),
        h("div", { class: "vlkit-row-of-buttons" }, button("try_button"), button("stop_button"), button("remember_button", "vlkit-primary")),
        status, question, progress, chosen, h("div", {}, button("forget_button")),
      ],
      main: [tried, h("div", {}, h("b", {}, t("Known models")), memory), list],
    };
  }),
};

// The labels and templates that are typed, and what follows from them: prompts, and one row a label.

import { byId, debounced, el, fillWith, notice } from "./dom.js";
import { ServiceError } from "./service.js";
import { classRow } from "./vectors.js";
import { count, fill, parseLabels, parseTemplates, writeLabels } from "./words.js";

const MOST_PROMPTS = 25_000;
const SHOWN = 200;
const OWN = "own";

export class Labels {
  /** `changed` is called when there is something new to show, `typed` when a link would differ. */
  constructor({ embeddings, changed, typed, fail }) {
    Object.assign(this, { embeddings, changed, typed, fail });
    this.sets = { classes: {}, templates: { photo: ["a photo of a {}."] } };
    this.order = ["photo"];
    this.rows = []; // {name, row} of the labels that the model takes, of the last finished list
    this.ready = true;
    this.round = 0;
    this.kept = new Map();
    this.later = debounced(() => this.compute(), 220);
    const edited = () => { this.read(); this.typed(); this.later(); };
    byId("labels").addEventListener("input", edited);
    byId("templates").addEventListener("input", edited);
    byId("labels-clear").addEventListener("click", () => { this.setLabels([]); byId("labels").focus(); });
    byId("label-sets").addEventListener("change", (event) => {
      const chosen = this.sets.classes[event.target.value];
      event.target.value = "";
      if (chosen) this.setLabels(chosen.names);
    });
    byId("template-sets").addEventListener("change", (event) => {
      if (event.target.value !== OWN) this.setTemplates(this.sets.templates[event.target.value]);
      else byId("templates").focus();
    });
    byId("templates-group").open = matchMedia("(min-width: 861px)").matches;
    byId("prompts").addEventListener("toggle", () => this.listPrompts());
    this.read();
  }

  /** The shipped lists, when they have come. */
  offer(sets) {
    this.sets = sets;
    const several = Object.entries(sets.classes).sort((a, b) => a[1].names.length - b[1].names.length || (a[0] < b[0] ? -1 : 1));
    byId("label-sets").append(...several.map(([name, one]) => el("option", { value: name }, `${name} (${one.names.length})`)));
    const first = ["photo", "bare", "openai_imagenet_best7", "openai_imagenet"].filter((name) => name in sets.templates);
    this.order = [...first, ...Object.keys(sets.templates).filter((name) => !first.includes(name)).sort()];
    fillWith(
      byId("template-sets"),
      this.order.map((name) => el("option", { value: name }, `${name} (${sets.templates[name].length})`)),
      el("option", { value: OWN }, "my own"),
    );
    this.read();
  }

  setLabels(names) {
    byId("labels").value = writeLabels(names);
    this.read();
    this.typed();
    return this.compute();
  }

  setTemplates(templates) {
    byId("templates").value = templates.join("\n");
    this.read();
    this.typed();
    return this.compute();
  }

  /** For a link: a set by its name, own templates letter by letter. */
  state() {
    const set = this.templateSet();
    return { labels: writeLabels(this.names), templates: set === OWN ? this.templates.join("\n") : set };
  }

  restore({ labels, templates }) {
    if (labels !== undefined) byId("labels").value = labels;
    if (templates !== undefined) byId("templates").value = this.sets.templates[templates]?.join("\n") ?? templates;
    this.read();
    return this.compute();
  }

  templateSet() {
    const typed = JSON.stringify(this.templates);
    const same = (name) => JSON.stringify(this.sets.templates[name]) === typed;
    const chosen = byId("template-sets").value; // several data sets have the same templates
    return same(chosen) ? chosen : this.order.find(same) ?? OWN;
  }

  /** What is typed now, said back at once. */
  read() {
    const { names, repeated } = parseLabels(byId("labels").value);
    const { templates, wrong } = parseTemplates(byId("templates").value);
    this.names = names;
    this.templates = templates;
    this.wrong = wrong;
    const parts = names.length ? [count(names.length, "label")] : [];
    if (repeated) parts.push(`${repeated} repeated left out`);
    byId("labels-said").textContent = parts.join(", ");
    const set = this.templateSet();
    if ([...byId("template-sets").options].some((option) => option.value === set)) byId("template-sets").value = set;
    byId("templates-said").textContent = `${set === OWN ? "my own" : set} (${templates.length})`;
    fillWith(
      byId("templates-problems"),
      wrong.length && notice("bad", "", `${wrong.length === 1 ? "This line needs" : "These lines need"} one {}: ${wrong.join(" | ")}`),
      !wrong.length && !templates.length && notice("bad", "", "There is no template. {} alone is the bare label."),
    );
    const prompts = names.length * templates.length;
    const product = `${count(names.length, "label")} × ${count(templates.length, "template")}`;
    byId("prompts-summary").textContent = prompts ? `${count(prompts, "prompt")}: ${product}` : "No prompts yet";
    this.listPrompts();
  }

  listPrompts() {
    if (!byId("prompts").open) return;
    const prompts = this.names.slice(0, SHOWN).flatMap((name) => this.templates.map((template) => fill(template, name)));
    const more = this.names.length * this.templates.length - Math.min(prompts.length, SHOWN);
    fillWith(
      byId("prompts-list"),
      prompts.slice(0, SHOWN).map((prompt) => el("li", { dir: "auto" }, prompt)),
      more > 0 && el("li", { class: "soft" }, `and ${more.toLocaleString("en")} more`),
    );
  }

  /** Rows of all labels; only the last call's result counts, so that what is typed meanwhile is never shown late. */
  async compute() {
    const round = ++this.round;
    const { names, templates } = this;
    if (!this.embeddings.card) return;
    fillWith(byId("labels-problems"));
    if (!names.length || !templates.length) {
      this.rows = [];
      this.settle();
      return;
    }
    const prompts = names.flatMap((name) => templates.map((template) => fill(template, name)));
    if (prompts.length > MOST_PROMPTS) {
      this.rows = [];
      fillWith(byId("labels-problems"), notice("bad", "Too much for a page.", `${count(prompts.length, "prompt")}; it takes ${
        count(MOST_PROMPTS, "prompt")} at most. “ostension classify” has no such limit.`));
      this.settle();
      return;
    }
    this.ready = false;
    const progress = () => {
      if (round !== this.round) return;
      const known = prompts.filter((prompt) => this.embeddings.text(prompt) !== undefined).length;
      this.progress?.(known, prompts.length);
    };
    progress();
    try {
      await this.embeddings.ensure(prompts, progress, () => round === this.round);
    } catch (error) {
      if (round === this.round) {
        this.settle();
        this.fail(error, () => this.compute());
      }
      return;
    }
    if (round !== this.round) return;
    const wide = templates.length;
    const listed = names.map((name, place) => {
      const rows = prompts.slice(place * wide, (place + 1) * wide).map((prompt) => this.embeddings.text(prompt));
      const error = rows.find((row) => row instanceof ServiceError);
      return error ? { name, error } : { name, row: this.averaged(name, rows) };
    });
    this.rows = listed.filter((one) => !one.error);
    const refused = listed.filter((one) => one.error);
    fillWith(
      byId("labels-problems"),
      refused.length && notice("bad", `${refused.length === 1 ? "A label is" : `${refused.length} labels are`} left out.`,
        refused.slice(0, 5).map((one) => `“${shortened(one.name)}”: ${one.error.message}`).join(" ")),
    );
    this.settle();
  }

  /** The class's row; kept by name while the templates stay. */
  averaged(name, rows) {
    const key = JSON.stringify([this.embeddings.card.sha256, this.templates]);
    if (key !== this.keptFor) this.kept = new Map();
    this.keptFor = key;
    if (!this.kept.has(name)) this.kept.set(name, classRow(rows));
    return this.kept.get(name);
  }

  settle() {
    this.ready = true;
    this.progress?.(1, 1);
    this.changed();
  }
}

export function shortened(text, most = 60) {
  return text.length <= most ? text : `${text.slice(0, most)}…`;
}

// Pictures against labels: p = softmax(scale * f @ W.T), computed here so that bars move while one types.

import { announce, byId, copyText, el, fillWith, notice } from "./dom.js";
import { onChosen } from "./images.js";
import { classifySnippets } from "./snippets.js";
import { dot, order, softmax } from "./vectors.js";
import { bytes, count, csv, percent } from "./words.js";

const ODDS = 2; // the best two within these odds are called uncertain, as the audit of class names does
const COLUMNS = 24; // labels that a table has a column for; past them it has the best three
const MOST_PICTURES = 500;

export class Classify {
  constructor({ service, embeddings, labels, fail, copyLink, examples }) {
    Object.assign(this, { service, embeddings, labels, fail, examples });
    this.pictures = []; // {file, name, url, row, error, node, bars}
    this.sorted = { by: "added", label: "" };
    onChosen("classify-files", (files) => this.add(files));
    for (const id of ["sort", "top"]) byId(id).addEventListener("change", () => { this.sorted.label = ""; this.show(); });
    for (const radio of document.querySelectorAll("input[name=view]")) radio.addEventListener("change", () => this.show());
    byId("pictures-clear").addEventListener("click", () => this.clear());
    byId("copy-csv").addEventListener("click", (event) => copyText(csv(this.cells()), event.target));
    byId("copy-json").addEventListener("click", (event) => copyText(JSON.stringify(this.tree(), null, 2), event.target));
    byId("copy-link").addEventListener("click", (event) => copyLink(event.target));
    byId("classify-code").addEventListener("toggle", () => this.showSnippets());
    this.show();
  }

  /** Takes files; each is embedded once. */
  async add(files) {
    const room = MOST_PICTURES - this.pictures.length;
    fillWith(byId("classify-notices"), files.length > room && notice("bad", "Too many pictures.",
      `This page keeps ${MOST_PICTURES}; ${count(files.length - room, "file")} were left out. “ostension classify FOLDER” has no such limit.`));
    const added = files.slice(0, Math.max(0, room)).map((file) => (
      { file, name: file.name || "pasted picture", url: URL.createObjectURL(file), row: null, error: null }
    ));
    this.pictures.push(...added);
    this.show();
    await this.embed(added);
  }

  async embed(pictures) {
    const byFile = new Map(pictures.map((picture) => [picture.file, picture]));
    await this.embeddings.images([...byFile.keys()], (file, result) => {
      const picture = byFile.get(file);
      if (result instanceof Error) picture.error = result;
      else Object.assign(picture, { row: result, error: null });
      this.soon();
    });
  }

  /** Asks again for a picture that a busy or lost service has not answered. */
  retry(picture) {
    picture.error = null;
    this.show();
    picture.node.querySelector("button.remove").focus(); // the button that was pressed is gone
    return this.embed([picture]);
  }

  /** Shows what has come, several answers at once: hundreds of pictures would else be drawn anew for each of them. */
  soon() {
    this.waiting ??= setTimeout(() => {
      this.waiting = null;
      this.show();
    }, 16);
  }

  /** After a change of the model nothing that was computed counts. */
  again() {
    for (const picture of this.pictures) Object.assign(picture, { row: null, error: null });
    this.show();
    return this.embed(this.pictures);
  }

  remove(picture) {
    const place = this.pictures.indexOf(picture);
    URL.revokeObjectURL(picture.url);
    this.pictures.splice(place, 1);
    this.show();
    const next = this.pictures[Math.min(place, this.pictures.length - 1)];
    (next?.node?.querySelector("button.remove") ?? byId("classify-files")).focus();
    announce(`${picture.name} removed`, "removed", 0);
  }

  clear() {
    for (const picture of this.pictures) URL.revokeObjectURL(picture.url);
    this.pictures = [];
    this.show();
    byId("classify-files").focus();
  }

  progress(known, all) {
    const busy = known < all && all > 1;
    byId("classify-progress").hidden = !busy;
    byId("classify-results").setAttribute("aria-busy", String(known < all));
    byId("classify-bar").value = known / all;
    byId("classify-progress-text").textContent = `${known.toLocaleString("en")} of ${count(all, "prompt")}`;
  }

  /** Probabilities of each picture that has a row, by the labels of the last finished list. */
  compute() {
    const { rows } = this.labels;
    const scale = this.embeddings.card?.logit_scale ?? 1;
    for (const picture of this.pictures) {
      const { row, of } = picture;
      if (of && of.row === row && of.rows === rows && of.scale === scale) continue;
      Object.assign(picture, { found: null, of: { row, rows, scale } });
      if (!row || !rows.length) continue;
      const probabilities = softmax(rows.map(({ row }) => scale * dot(picture.row, row)));
      const places = order(probabilities);
      const [first, second] = places.map((place) => probabilities[place]);
      picture.found = { probabilities, places, unsure: rows.length > 1 && first < ODDS * second };
    }
  }

  inOrder() {
    const best = (picture) => (picture.found ? picture.found.probabilities[picture.found.places[0]] : -1);
    const label = (picture) => (picture.found ? this.labels.rows[picture.found.places[0]].name : "\uffff");
    const text = new Intl.Collator("en", { numeric: true });
    const column = this.labels.rows.findIndex(({ name }) => name === this.sorted.label);
    const ways = {
      name: (a, b) => text.compare(a.name, b.name),
      sure: (a, b) => best(b) - best(a),
      unsure: (a, b) => (a.found ? best(a) : 2) - (b.found ? best(b) : 2),
      label: (a, b) => text.compare(label(a), label(b)) || best(b) - best(a),
    };
    const way = column >= 0
      ? (a, b) => (b.found?.probabilities[column] ?? -1) - (a.found?.probabilities[column] ?? -1)
      : ways[byId("sort").value];
    return way ? [...this.pictures].sort(way) : [...this.pictures];
  }

  show() {
    this.compute();
    const some = this.pictures.length > 0;
    byId("classify-tools").hidden = !some;
    byId("classify-after").hidden = !some;
    byId("classify-code").hidden = !some || !this.labels.names.length;
    this.showSnippets();
    const place = byId("classify-results");
    if (!some) {
      fillWith(place, this.empty());
      return;
    }
    const table = document.querySelector("input[name=view]:checked").value === "table";
    byId("top").closest("label").hidden = table;
    if (table) fillWith(place, this.hints(), this.table());
    else this.cards(place);
    this.say();
  }

  empty() {
    const step = (number, title, text) => el("li", {}, el("span", { class: "number", "aria-hidden": "true" }, number), el("div", {}, el("strong", {}, title), el("p", {}, text)));
    return el("div", { class: "empty" },
      el("p", { class: "lead" }, "Point at a picture, say what it might be, and see what the model thinks of your words."),
      el("ol", { class: "steps" },
        step("1", "Drop a picture", "or choose or paste several."),
        step("2", "Type labels", "any words, in any number."),
        step("3", "Watch the bars", "they move while you type."),
      ),
      this.examples && el("button", { type: "button", onclick: () => this.examples() }, "Try it with three pictures"),
    );
  }

  hints() {
    const lines = [];
    if (!this.labels.names.length) lines.push("Type labels to see what these pictures are called.");
    else if (this.labels.rows.length === 1) lines.push("A single label always gets all of it. Type another one to compare with.");
    const unsure = this.pictures.filter((picture) => picture.found?.unsure).length;
    if (unsure) lines.push(`Uncertain: the best two labels of a picture are within odds of ${ODDS} to 1.`);
    return lines.length > 0 && el("p", { class: "hint" }, lines.join(" "));
  }

  /** Bars; nodes are kept, so that a bar glides from one value to the next. */
  cards(place) {
    let list = place.querySelector("ul.pictures");
    if (!list) {
      fillWith(place, el("div", { class: "hints" }), el("ul", { class: "pictures" }));
      list = place.querySelector("ul.pictures");
      for (const picture of this.pictures) picture.node = null;
    }
    fillWith(place.querySelector(".hints"), this.hints());
    const nodes = this.inOrder().map((picture) => this.card(picture));
    if (nodes.length !== list.children.length || nodes.some((node, index) => node !== list.children[index])) list.replaceChildren(...nodes);
  }

  card(picture) {
    if (!picture.node) {
      picture.bars = el("ol", { class: "bars" });
      picture.mark = el("span", { class: "mark", hidden: true }, "uncertain");
      picture.said = el("p", { class: "hint" });
      picture.again = el("button", { type: "button", hidden: true, "aria-label": `Try ${picture.name} again`, onclick: () => this.retry(picture) }, "Try again");
      picture.node = el("li", { class: "picture" },
        this.thumb(picture),
        el("div", { class: "body" },
          el("div", { class: "head" },
            el("h4", { dir: "auto" }, picture.name), picture.mark,
            el("button", { type: "button", class: "remove", "aria-label": `Remove ${picture.name}`, title: "Remove", onclick: () => this.remove(picture) }, "×"),
          ),
          picture.bars, picture.said, picture.again,
        ),
      );
    }
    const { found } = picture;
    picture.mark.hidden = !found?.unsure;
    picture.node.classList.toggle("bad", Boolean(picture.error));
    picture.node.setAttribute("aria-busy", String(!picture.row && !picture.error));
    const most = Number(byId("top").value) || Infinity;
    const shown = found ? found.places.slice(0, most) : [];
    this.bars(picture, shown);
    const more = found ? found.places.length - shown.length : 0;
    const rest = more ? `and ${count(more, "more label")} with ${percent(othersOf(found, shown))} together` : "";
    const waits = picture.row ? "" : `Reading ${bytes(picture.file.size)}…`;
    picture.said.textContent = picture.error ? "" : waits || rest;
    let problem = picture.node.querySelector(".problem");
    if (picture.error && !problem) {
      problem = el("p", { class: "problem", role: "alert" });
      picture.bars.before(problem);
    }
    if (picture.error) problem.textContent = picture.error.message;
    else problem?.remove();
    picture.again.hidden = !picture.error?.passes;
    return picture.node;
  }

  thumb(picture) {
    const image = el("img", { src: picture.url, alt: "", class: "thumb", decoding: "async", loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(el("span", { class: "thumb none", "aria-hidden": "true" }, "?")));
    return image;
  }

  bars(picture, shown) {
    const kept = new Map([...picture.bars.children].map((node) => [node.dataset.label, node]));
    const nodes = shown.map((place, rank) => {
      const { name } = this.labels.rows[place];
      const node = kept.get(name) ?? bar(name);
      const value = picture.found.probabilities[place];
      node.querySelector(".fill").style.width = `${100 * value}%`;
      node.querySelector(".value").textContent = percent(value);
      node.classList.toggle("best", rank === 0);
      return node;
    });
    const now = [...picture.bars.children];
    if (nodes.length !== now.length || nodes.some((node, index) => node !== now[index])) picture.bars.replaceChildren(...nodes);
  }

  table() {
    const { rows } = this.labels;
    const matrix = rows.length <= COLUMNS;
    const heads = matrix ? rows.map(({ name }) => name) : ["best", "second", "third"];
    const column = (name) => {
      const on = this.sorted.label === name;
      const button = el("button", { type: "button", dir: "auto", onclick: () => { this.sorted.label = on ? "" : name; this.show(); this.refocus(name); } }, name);
      button.dataset.column = name;
      return el("th", { scope: "col", "aria-sort": on ? "descending" : "none" }, matrix ? button : name);
    };
    const body = this.inOrder().map((picture) => {
      const image = this.thumb(picture);
      const head = el("th", { scope: "row" }, el("span", { class: "named" }, image, el("span", { dir: "auto" }, picture.name)));
      if (picture.error) return el("tr", {}, head, el("td", { colSpan: heads.length + 1, class: "problem" }, picture.error.message));
      if (!picture.found) return el("tr", {}, head, el("td", { colSpan: heads.length + 1, class: "soft" }, picture.row ? "" : "reading…"));
      const { probabilities, places, unsure } = picture.found;
      const cells = matrix
        ? rows.map((_, place) => cell(probabilities[place], place === places[0]))
        : places.slice(0, 3).map((place) => el("td", {}, el("span", { dir: "auto" }, rows[place].name), " ", el("span", { class: "soft" }, percent(probabilities[place]))));
      return el("tr", {}, head, cells, el("td", { class: "verdict" }, unsure ? el("span", { class: "mark" }, "uncertain") : ""));
    });
    return el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of probabilities" },
      el("table", { class: matrix ? "matrix" : "words" },
        el("caption", { class: "offscreen" }, "Probabilities of labels for each picture"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "picture"), heads.map(column), el("th", { scope: "col" }, el("span", { class: "offscreen" }, "uncertain")))),
        el("tbody", {}, body),
      ),
    );
  }

  refocus(name) {
    [...byId("classify-results").querySelectorAll("th button")].find((button) => button.dataset.column === name)?.focus();
  }

  /** For screen readers, when things have come to rest. */
  say() {
    const done = this.pictures.filter((picture) => picture.found);
    if (!done.length || !this.labels.ready) return;
    const lines = done.slice(0, 3).map(({ name, found }) => `${name}: ${this.labels.rows[found.places[0]].name}, ${percent(found.probabilities[found.places[0]])}`);
    announce(lines.join(". ") + (done.length > 3 ? `. And ${done.length - 3} more.` : ""));
  }

  cells() {
    const { rows } = this.labels;
    const head = ["picture", "best", "probability", "uncertain", "error", ...rows.map(({ name }) => name)];
    return [head, ...this.inOrder().map(({ name, found, error }) => (found
      ? [name, rows[found.places[0]].name, found.probabilities[found.places[0]], found.unsure, "", ...found.probabilities]
      : [name, "", "", "", error?.message ?? "", ...rows.map(() => "")]))];
  }

  tree() {
    const { rows, templates } = this.labels;
    const { card } = this.embeddings;
    return {
      model: card.id, sha256: card.sha256, logit_scale: card.logit_scale, templates, labels: rows.map(({ name }) => name),
      pictures: this.inOrder().map(({ name, found, error }) => (found
        ? { name, best: rows[found.places[0]].name, uncertain: found.unsure, probabilities: Object.fromEntries(rows.map((one, place) => [one.name, found.probabilities[place]])) }
        : { name, error: error?.message ?? "not read yet" })),
    };
  }

  showSnippets() {
    if (!byId("classify-code").open || !this.embeddings.card) return;
    const set = this.labels.templateSet();
    fillWith(byId("classify-snippets"), classifySnippets({
      names: this.pictures.filter((picture) => !picture.error).map(({ name }) => name), labels: this.labels.names,
      templates: set in this.labels.sets.templates ? set : this.labels.templates, keyed: Boolean(this.service.key),
    }));
  }
}

function othersOf(found, shown) {
  return Math.max(0, 1 - shown.reduce((sum, place) => sum + found.probabilities[place], 0));
}

function bar(name) {
  const node = el("li", {}, el("span", { class: "label", dir: "auto", title: name }, name),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill" })), el("span", { class: "value" }));
  node.dataset.label = name;
  return node;
}

function cell(value, best) {
  const made = el("td", { class: best ? "best" : "" }, percent(value));
  made.style.setProperty("--p", `${(45 * value).toFixed(1)}%`);
  return made;
}

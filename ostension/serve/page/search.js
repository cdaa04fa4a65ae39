// Search in a collection: words, a picture, hits that are liked or not, or all of them together.

import { announce, byId, copyText, debounced, el, fillWith, notice } from "./dom.js";
import { onChosen } from "./images.js";
import { Previews } from "./previews.js";
import { searchSnippets } from "./snippets.js";
import { ServiceError } from "./service.js";
import { dot, mixed } from "./vectors.js";
import { count } from "./words.js";

const NEAR = 0.95; // cosine from which hits are folded into one
const NAMED = ["caption", "texts", "text", "title", "name", "labels", "label"]; // fields that say what a picture shows, best first
const INTERNAL = ["fields", "digest", "perceptual", "described", "source", "sample"]; // columns that say nothing to a person

export class Search {
  constructor({ service, embeddings, fail, changed }) {
    Object.assign(this, { service, embeddings, fail, changed });
    this.previews = new Previews(service);
    this.collections = [];
    this.picture = null; // {file, url}
    this.items = []; // {sign, id, said}
    this.hits = [];
    this.opened = new Set();
    this.round = 0;
    this.rows = new Map();
    byId("search-form").addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    onChosen("search-file", (files) => this.take(files));
    for (const id of ["search-count", "search-fold"]) byId(id).addEventListener("change", () => this.again());
    byId("search-collection").addEventListener("change", () => { this.items = []; this.listTerms(); this.describe(); this.again(); });
    const slow = debounced(() => this.again(), 150);
    byId("search-weight").addEventListener("input", slow);
    byId("search-words").addEventListener("input", () => this.listTerms());
    byId("search-code").addEventListener("toggle", () => this.showSnippets());
    byId("item-dialog").addEventListener("click", (event) => { if (event.target === byId("item-dialog")) byId("item-dialog").close(); });
  }

  /** Which collections there are; tells how to make one where there is none. */
  async open() {
    try {
      this.collections = (await this.service.get("v1/collections")).data;
    } catch (error) {
      if (!(error instanceof ServiceError) || error.status !== 404) {
        this.fail(error, () => this.open(), "search-notices");
        return;
      }
      this.collections = [];
    }
    fillWith(byId("search-notices"));
    byId("search-form").hidden = !this.collections.length;
    fillWith(byId("search-none"), this.collections.length ? null : howToMake());
    const chosen = byId("search-collection").value;
    fillWith(byId("search-collection"), this.collections.map((one) => el("option", { value: one.name }, `${one.name} (${one.rows.toLocaleString("en")})`)));
    if (this.collections.some((one) => one.name === chosen)) byId("search-collection").value = chosen;
    byId("search-collection-label").hidden = this.collections.length < 2;
    this.describe();
    this.listTerms();
    this.warn();
  }

  /** Rows of another model cannot be searched with this one. */
  warn() {
    const other = this.collections.filter((one) => one.sha256 && one.sha256 !== this.embeddings.card.sha256);
    if (other.length) {
      fillWith(byId("search-notices"), notice("bad", "Made by another model:", `${other.map((one) => one.name).join(", ")}. Serve the model that made it, or embed the pictures anew.`));
    }
  }

  collection() {
    return this.collections.find((one) => one.name === byId("search-collection").value);
  }

  /** The collection's size, and the fields that a filter can name: its columns, and what hits have had. */
  describe() {
    const one = this.collection();
    if (!one) return;
    byId("search-size").textContent = this.collections.length < 2 ? `${count(one.rows, "picture")} in “${one.name}”.` : "";
    const known = [...one.columns, ...this.hits.flatMap((hit) => Object.keys(hit.fields ?? {}))];
    const names = [...new Set(known)].filter((name) => !INTERNAL.includes(name));
    fillWith(byId("search-fields"), "Fields: ", names.map((name) => (
      el("button", { type: "button", class: "field", dir: "auto", onclick: () => this.insertField(name) }, name))));
    byId("search-filter-said").textContent = byId("search-where").value.trim();
  }

  insertField(name) {
    const input = byId("search-where");
    const before = input.value.trim();
    input.value = `${before ? `${before} and ` : ""}${/^[\w.]+$/.test(name) ? name : `"${name}"`} = `;
    input.focus();
  }

  /** A picture for the query; the last one counts. */
  take(files) {
    if (this.picture) URL.revokeObjectURL(this.picture.url);
    this.picture = { file: files[0], url: URL.createObjectURL(files[0]), row: null };
    this.listTerms();
    return this.run();
  }

  state() {
    return { q: byId("search-words").value.trim(), where: byId("search-where").value.trim(), in: this.collections.length > 1 ? byId("search-collection").value : "" };
  }

  restore({ q, where, in: name }, run) {
    if (q !== undefined) byId("search-words").value = q;
    if (where !== undefined) byId("search-where").value = where;
    byId("search-filter").open = Boolean(where);
    if (name && this.collections.some((one) => one.name === name)) byId("search-collection").value = name;
    this.describe();
    this.listTerms();
    if (run && q && this.collections.length) this.run();
  }

  words() {
    return byId("search-words").value.trim();
  }

  asked() {
    return Boolean(this.words() || this.picture || this.items.length);
  }

  listTerms() {
    const chip = (sign, content, remove, name) => el("li", { class: sign < 0 ? "minus" : "" },
      el("span", { "aria-hidden": "true" }, sign < 0 ? "−" : "+"), content,
      el("button", { type: "button", class: "remove", "aria-label": `Take ${name} out of the query`, onclick: () => { remove(); this.listTerms(); byId("search-words").focus(); this.again(); } }, "×"));
    const chips = this.items.map((item) => chip(item.sign, el("span", { dir: "auto" }, `${item.sign < 0 ? "less" : "more"} like ${item.said}`), () => { this.items = this.items.filter((one) => one !== item); }, item.said));
    if (this.picture) {
      const image = el("img", { src: this.picture.url, alt: "", class: "thumb" });
      image.addEventListener("error", () => image.remove());
      chips.unshift(chip(1, el("span", { class: "named" }, image, el("span", { dir: "auto" }, this.picture.file.name || "pasted picture")), () => { URL.revokeObjectURL(this.picture.url); this.picture = null; }, "the picture"));
    }
    byId("search-terms").hidden = !chips.length;
    fillWith(byId("search-terms"), chips);
    byId("search-weight-label").hidden = !(this.picture && (this.words() || this.items.length));
  }

  again() {
    if (this.asked()) return this.run();
    fillWith(byId("search-results"));
    byId("search-code").hidden = true;
    return null;
  }

  /** Adds a hit to the query, or takes it away; alone, it is the whole query. */
  like(hit, sign, alone) {
    byId("item-dialog").close();
    const item = { sign, id: hit.id, said: saidOf(hit) };
    if (alone) {
      byId("search-words").value = "";
      if (this.picture) URL.revokeObjectURL(this.picture.url);
      this.picture = null;
    }
    this.items = [...(alone ? [] : this.items.filter((one) => one.id !== hit.id)), item];
    this.listTerms();
    return this.run();
  }

  /** The query as the service takes it: words and hits as an expression; with a picture, the vector of both, and of what it was
   * made where that is simple. */
  async query() {
    const words = this.words();
    const { items, picture } = this; // which may be others when the answers come
    if (!picture && !words && items.length === 1 && items[0].sign > 0) return { query: { id: items[0].id } };
    if (!picture && !items.some(awkward)) return { query: { expression: this.expression() } };
    const rest = words || items.length ? await this.restRow() : null;
    if (!picture) return { query: { vector: [...rest] } };
    const share = Number(byId("search-weight").value) / 100;
    const image = await this.pictureRow(picture);
    const simple = !items.length && !/(^|\s)[+-]\s|^["'@]|^image:|\d\s*\*/.test(words); // plain words
    const made = simple ? { file: picture.file.name || "picture.png", words, share } : null;
    return { query: { vector: [...(rest ? mixed([rest, image], [1 - share, share]) : image)] }, made };
  }

  /** "sunset - people + @boat-17", as `ostension search` reads it. */
  expression() {
    return [this.words(), ...this.items.map((item) => `${item.sign < 0 ? "-" : "+"} @${item.id}`)].filter(Boolean).join(" ");
  }

  /** The unit vector of words and hits together. */
  async restRow() {
    if (!this.items.some(awkward)) return this.row({ expression: this.expression() });
    const terms = this.words() ? [[await this.row({ expression: this.words() }), 1]] : [];
    for (const item of this.items) terms.push([await this.row({ id: item.id }), item.sign]);
    return mixed(terms.map(([row]) => row), terms.map(([, sign]) => sign));
  }

  /** The vector that the service makes of a query; asked for once. */
  async row(query) {
    const collection = byId("search-collection").value;
    const key = JSON.stringify([this.embeddings.card.sha256, collection, query]);
    if (!this.rows.has(key)) {
      const answer = await this.service.post("v1/search", { collection, query, k: 0, vectors: true });
      this.rows.set(key, answer.vector);
    }
    return this.rows.get(key);
  }

  async pictureRow(picture) {
    if (!picture.row) {
      await this.embeddings.images([picture.file], (_, row) => { picture.row = row; });
      if (picture.row instanceof Error) {
        const error = new ServiceError(`${picture.file.name || "The picture"}: ${picture.row.message}`, picture.row);
        picture.row = null;
        throw error;
      }
    }
    return picture.row;
  }

  async run() {
    const round = ++this.round;
    if (!this.asked()) {
      byId("search-words").focus();
      return;
    }
    this.changed();
    const results = byId("search-results");
    results.setAttribute("aria-busy", "true");
    fillWith(byId("search-notices"));
    const wanted = Number(byId("search-count").value);
    const fold = byId("search-fold").checked;
    const k = Math.min(this.embeddings.limits.max_results ?? wanted, fold ? 4 * wanted : wanted);
    try {
      const { query, made = null } = await this.query();
      const where = byId("search-where").value.trim();
      const body = { collection: byId("search-collection").value, query, k, vectors: true, ...(where && { where }) };
      if (round !== this.round) return;
      this.stop?.abort();
      this.stop = new AbortController();
      const answer = await this.service.post("v1/search", body, { signal: this.stop.signal });
      if (round !== this.round) return;
      Object.assign(this, { sent: { ...body, k: wanted }, made });
      this.hits = (fold ? folded(answer.data) : answer.data.map((hit) => ({ ...hit, near: [] }))).slice(0, wanted);
      this.show(where);
    } catch (error) {
      if (round !== this.round || error.name === "AbortError") return;
      fillWith(results);
      byId("search-code").hidden = true;
      this.fail(error, () => this.run(), "search-notices");
    } finally {
      if (round === this.round) results.setAttribute("aria-busy", "false");
    }
  }

  show(where) {
    const results = byId("search-results");
    this.previews.forget();
    this.describe();
    byId("search-code").hidden = false;
    this.showSnippets();
    if (!this.hits.length) {
      fillWith(results, el("div", { class: "empty" }, el("p", { class: "lead" }, where ? "Nothing in this collection meets the filter." : "This collection is empty.")));
      announce("Nothing found.");
      return;
    }
    const foldedIn = this.hits.reduce((sum, hit) => sum + hit.near.length, 0);
    const said = count(this.hits.length, "hit") + (foldedIn ? `, ${count(foldedIn, "near-duplicate")} folded` : "");
    const list = el("ul", { class: "hits", "aria-label": "Hits, best first. Arrow keys move between them." }, this.hits.map((hit, place) => this.card(hit, place)));
    list.addEventListener("keydown", (event) => this.move(event, list));
    list.addEventListener("focusin", (event) => this.rove(list, event.target.closest("li")));
    this.rove(list, list.firstElementChild);
    fillWith(results, el("p", { class: "hint" }, `${said}. The number is the cosine with the query.`), list);
    announce(`${said}. Best: ${saidOf(this.hits[0])}.`);
  }

  card(hit, place) {
    const said = saidOf(hit);
    const score = hit.score.toFixed(3);
    const near = hit.near.length ? `+${hit.near.length} alike` : "";
    const open = el("button", { type: "button", class: "open", onclick: () => this.detail(hit), "aria-label": [said, score, near, `hit ${place + 1}`].filter(Boolean).join(" ") },
      this.image(hit), el("span", { class: "said", dir: "auto" }, said), " ",
      el("span", { class: "facts" }, el("span", { class: "score" }, score), " ", near && el("span", { class: "near" }, near)));
    const like = el("button", { type: "button", class: "like quiet", "aria-label": `Like this: ${said}`, onclick: () => this.like(hit, 1, true) }, "Like this");
    return el("li", {}, open, like);
  }

  image(hit) {
    const { previews, name } = this.collection() ?? {};
    return this.previews.element(name, hit, saidOf(hit), previews);
  }

  /** One hit is in the order of the Tab key; arrows go to the others. */
  rove(list, active) {
    if (!active) return;
    for (const item of list.children) for (const button of item.querySelectorAll("button")) button.tabIndex = item === active ? 0 : -1;
  }

  move(event, list) {
    const items = [...list.children];
    const at = items.indexOf(event.target.closest("li"));
    const top = items[0].offsetTop;
    const columns = Math.max(1, items.findIndex((item) => item.offsetTop > top) === -1 ? items.length : items.findIndex((item) => item.offsetTop > top));
    const rtl = getComputedStyle(list).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: rtl, ArrowLeft: -rtl, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: items.length - 1 - at };
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    items[Math.min(items.length - 1, Math.max(0, at + steps[event.key]))].querySelector("button").focus();
  }

  /** Everything about a hit. */
  detail(hit) {
    const dialog = byId("item-dialog");
    const fields = Object.entries(hit.fields ?? {}).filter(([, value]) => value !== null && written(value) !== "");
    const button = (label, run, kind = "") => el("button", { type: "button", class: kind, onclick: run }, label);
    fillWith(dialog,
      el("div", { class: "detail" },
        el("div", { class: "head" }, el("h2", { id: "item-title", dir: "auto" }, saidOf(hit)), el("button", { type: "button", class: "remove", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
        this.image(hit),
        el("div", { class: "row wrap" }, button("Like this", () => this.like(hit, 1, true), "primary"), button("+ add to the query", () => this.like(hit, 1, false)), button("− take away", () => this.like(hit, -1, false))),
        el("dl", { class: "card-list" }, pair("id", hit.id), pair("cosine", hit.score.toFixed(4)), fields.flatMap(([name, value]) => pair(name, written(value)))),
        hit.near.length ? el("details", { open: true }, el("summary", {}, count(hit.near.length, "near-duplicate")), el("ul", { class: "plain" }, hit.near.map((one) => el("li", { dir: "auto" }, `${saidOf(one)} (${one.score.toFixed(3)})`)))) : null,
      ));
    dialog.setAttribute("aria-labelledby", "item-title");
    dialog.showModal();
  }

  showSnippets() {
    if (byId("search-code").open && this.sent) fillWith(byId("search-snippets"), searchSnippets(this.sent, this.made, Boolean(this.service.key)));
  }
}

/** An id that an expression cannot name, for a part of it would be read as a sign: "me - you.jpg". */
function awkward({ id }) {
  return /\s[+-]\s|^\s|\s$/.test(id);
}

/** Hits without those that are nearly the same as a better one; that one keeps them. */
function folded(hits) {
  const kept = [];
  for (const hit of hits) {
    const leader = kept.find((one) => dot(one.vector, hit.vector) >= NEAR);
    if (leader) leader.near.push(hit);
    else kept.push({ ...hit, near: [] });
  }
  return kept;
}

/** What a hit shows, as far as its fields say. */
function saidOf(hit) {
  const values = NAMED.map((field) => [hit.fields?.[field]].flat()[0]);
  const said = values.find((value) => typeof value === "string" && value.trim()) ?? hit.id;
  return said.trim().replace(/\s+/g, " ");
}

/** A value of a field for reading. */
function written(value) {
  if (Array.isArray(value)) return value.map(written).join(", ");
  if (value && typeof value === "object") return Object.entries(value).map(([name, one]) => `${name}: ${written(one)}`).join("; ");
  return String(value);
}

function pair(name, value) {
  return [el("dt", { dir: "auto" }, name), el("dd", { dir: "auto" }, value)];
}

function howToMake() {
  const lines = "ostension embed PICTURES -o STORE --model MODEL\nostension serve --model MODEL --store STORE --previews";
  const copy = el("button", { type: "button", class: "quiet", onclick: (event) => copyText(lines, event.target) }, "Copy");
  return el("div", { class: "empty" },
    el("p", { class: "lead" }, "No collection is served yet."),
    el("p", {}, "Embed a folder of pictures once, then start the service with it:"),
    el("div", { class: "snippet" }, el("pre", {}, el("code", {}, lines)), copy));
}

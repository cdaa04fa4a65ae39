// The page: its tabs, the link that carries what was typed, and what is said when the service is busy, gone or closed.

import { Audit } from "./audit.js";
import { showCard } from "./card.js";
import { Classify } from "./classify.js";
import { byId, copyText, debounced, el, fillWith, notice, announce } from "./dom.js";
import { Embeddings } from "./embeddings.js";
import { watchForPictures } from "./images.js";
import { Labels } from "./labels.js";
import { Search } from "./search.js";
import { Service, ServiceError } from "./service.js";
import { count, readFragment, writeFragment } from "./words.js";

const TABS = ["classify", "search", "audit", "model"];
const FINAL = [400, 404, 409, 413]; // the same request would be refused again
const HERE = new URL(".", import.meta.url);
const EXAMPLES = { files: ["cat.webp", "bicycle.webp", "pizza.webp"], labels: ["cat", "dog", "bicycle", "pizza"] };

const service = new Service({ state: showState, askKey });
const embeddings = new Embeddings(service, meet);
const labels = new Labels({ embeddings, changed: () => classify.show(), typed: () => { remember(); audit.refresh(); }, fail });
const classify = new Classify({ service, embeddings, labels, fail, copyLink, examples: tryExamples });
labels.progress = (known, all) => classify.progress(known, all);
const search = new Search({ service, embeddings, fail, changed: () => remember() });
const audit = new Audit({ service, labels, fail });
const remember = debounced(() => history.replaceState(null, "", link()), 300);
let tab = "classify";
let began = false;

/** What failed, where it failed, in words; with a way to try again. */
function fail(error, again, place = "classify-notices") {
  if (!(error instanceof ServiceError)) console.error(error);
  const said = error instanceof ServiceError ? error.message : "Something went wrong in this page. Load it again; what was typed is in its address.";
  const title = { 429: "The service is still busy.", 503: "The service is not ready.", 504: "It took too long." }[error.status] ?? "";
  fillWith(byId(place), notice("bad", title, said, again && !FINAL.includes(error.status) && { label: "Try again", run: () => { fillWith(byId(place)); again(); } }));
  announce(`${title} ${said}`, "error", 0);
}

/** Busy, gone or back: one line at the top of the page. */
function showState({ kind, seconds, returned }) {
  const place = byId("connection");
  const said = {
    busy: () => notice("note", "The service is busy.", `Trying again in ${count(seconds, "second")}.`),
    starting: () => notice("note", "The service is not ready.", `Trying again in ${count(seconds, "second")}.`),
    gone: () => notice("bad", "The service does not answer.", "What you typed is kept, and it goes on by itself when the service is back.", { label: "Try now", run: () => service.tryNow?.() }),
  }[kind];
  if (kind === "gone" && place.dataset.kind === "gone") return; // said already; a screen reader need not hear it at each try
  place.dataset.kind = kind;
  fillWith(place, said?.());
  if (returned && began) begin();
}

/** Asks for the key; what is given lives in this page's memory and nowhere else. */
function askKey(wrong) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  byId("key-said").textContent = wrong ? "It did not take that one." : "Ask whoever runs it.";
  input.value = "";
  return new Promise((resolve) => {
    const end = (key) => { input.value = ""; if (dialog.open) dialog.close(); resolve(key); };
    byId("key-form").onsubmit = (event) => { event.preventDefault(); end(input.value.trim() || null); };
    byId("key-cancel").onclick = () => end(null);
    dialog.onclose = () => resolve(null);
    dialog.showModal();
    input.focus();
  });
}

function link() {
  return writeFragment({ tab, ...labels.state(), ...search.state() });
}

function copyLink(button) {
  const address = new URL(location.href);
  address.hash = writeFragment({ tab: "classify", ...labels.state() });
  return copyText(address.href, button);
}

/** Shows a tab; with `focus`, for the keyboard. */
function open(name, focus = false) {
  tab = TABS.includes(name) ? name : "classify";
  for (const one of TABS) {
    const button = byId(`tab-${one}`);
    button.setAttribute("aria-selected", String(one === tab));
    button.tabIndex = one === tab ? 0 : -1;
    byId(one).hidden = one !== tab;
    if (one === tab && focus) button.focus();
  }
  if (tab === "audit") audit.refresh();
}

function step(event) {
  const rtl = getComputedStyle(document.body).direction === "rtl" ? -1 : 1;
  const at = TABS.indexOf(tab);
  const to = { ArrowRight: at + rtl, ArrowLeft: at - rtl, Home: 0, End: TABS.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  open(TABS[(to + TABS.length) % TABS.length], true);
  remember();
}

/** What the address says. */
function restore() {
  const state = readFragment(location.hash);
  open(state.tab ?? "classify");
  search.restore(state, tab === "search");
  labels.restore(state);
}

async function tryExamples() {
  const files = await Promise.all(EXAMPLES.files.map(async (name) => {
    const answer = await fetch(new URL(`examples/${name}`, HERE));
    return new File([await answer.blob()], name, { type: "image/webp" });
  }));
  if (!labels.names.length) labels.setLabels(EXAMPLES.labels);
  await classify.add(files);
}

/** Asks for the model's card; if it is another model than before, all that was embedded is embedded anew. */
async function meet() {
  const card = (await service.get("v1/models")).data[0];
  const other = embeddings.use(card);
  byId("model-name").textContent = card.id;
  document.title = `${card.id} · Ostension`;
  showCard(card, search.collections);
  if (other) {
    announce(`The service has another model now: ${card.id}.`, "model");
    labels.compute();
    classify.again();
  }
}

/** The model, the collections, and what the address says. */
async function begin() {
  try {
    await service.get("health/ready"); // before that the logit scale is not known
    await meet();
    await search.open();
    showCard(embeddings.card, search.collections);
    if (began) return;
    began = true;
    search.restore(readFragment(location.hash), tab === "search");
    await labels.compute();
  } catch (error) {
    fail(error, begin, tab === "classify" ? "classify-notices" : `${tab}-notices`);
  }
}

async function offerWords() {
  const words = await (await fetch(new URL("words.json", HERE))).json();
  labels.offer(words);
  audit.sets = words;
}

for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => { open(name); remember(); });
document.querySelector("[role=tablist]").addEventListener("keydown", step);
byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
addEventListener("hashchange", () => restore());
watchForPictures((files) => {
  if (document.querySelector("dialog[open]")) return;
  if (tab === "search" && search.collections.length) search.take(files);
  else { open("classify"); classify.add(files); }
});
open(readFragment(location.hash).tab ?? "classify");
await offerWords().catch((error) => fail(error, null));
restore();
await begin();

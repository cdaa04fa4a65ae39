// The model card: what the service says of its model.

import { byId, copyText, el, fillWith } from "./dom.js";
import { bytes, count } from "./words.js";

const LIMITS = {
  max_body_bytes: ["A request's body", bytes], max_image_bytes: ["A picture's file", bytes],
  max_pixels: ["A picture's pixels", (value) => `${(value / 1e6).toLocaleString("en")} million`],
  max_batch_items: ["Texts or pictures of a request", plain], max_text_length: ["Characters of a text", plain],
  max_labels: ["Labels of a request", plain], max_templates: ["Templates of a request", plain], max_prompts: ["Labels times templates", plain],
  max_results: ["Hits of a search", plain],
};

export function showCard(card, collections) {
  const facts = [
    ["Embedding", `${count(card.embed_dim, "number")}, unit length`],
    ["Pictures", `${card.image_size} × ${card.image_size} pixels`],
    ["Texts", `up to ${count(card.context_length, "token")}`],
    ["Logit scale", card.logit_scale === null ? "not known" : card.logit_scale.toFixed(2)],
    ...(card.logit_bias === null || card.logit_bias === undefined ? [] : [["Logit bias", card.logit_bias.toFixed(2)]]),
    ["Computed with", [card.engine, card.dtype].filter(Boolean).join(", ")],
    ...(card.predictors.length ? [["Predictors", card.predictors.map((one) => `${one.name} (${count(one.class_names.length, "class", "classes")})`).join(", ")]] : []),
    ["Collections", collections.length ? collections.map((one) => `${one.name} (${one.rows.toLocaleString("en")})`).join(", ") : "none served"],
  ];
  const limits = Object.entries(card.limits).filter(([name]) => name in LIMITS).map(([name, value]) => [LIMITS[name][0], LIMITS[name][1](value)]);
  fillWith(byId("model-card"),
    el("h2", { dir: "auto" }, card.id),
    card.sha256 && el("p", { class: "hash" }, el("span", { class: "soft" }, "SHA-256 "), el("code", {}, card.sha256), " ", el("button", { type: "button", class: "quiet", onclick: (event) => copyText(card.sha256, event.target) }, "Copy")),
    el("h3", {}, "What it is"), list(facts),
    ...described(card.architecture ?? {}),
    ...origin(card.provenance),
    el("h3", {}, "Limits of this service"), list(limits),
  );
}

/** How pictures are prepared, and both towers. */
function described({ preprocess, vision, text }) {
  const parts = [["How pictures are prepared", preprocess], ["Image tower", vision], ["Text tower", text]];
  return parts.filter(([, value]) => !empty(value)).map(([title, value]) => el("details", { class: "part" }, el("summary", {}, title), tree(value)));
}

/** What is known of data, licence and results, and that it is not known. */
function origin(provenance) {
  const run = found(provenance, ["run"]);
  const data = run?.settings?.data;
  const unknown = (what) => el("span", { class: "soft" }, `not recorded with the model${what}`);
  const known = [
    ["Trained on", empty(data) ? unknown("") : el("details", {}, el("summary", {}, written(data.name ?? data.source ?? data.path ?? data.kind ?? "the data of its run")), tree(data))],
    ...(run?.step ? [["Steps", plain(run.step)]] : []),
    ["Licence", written(found(provenance, ["license", "licence"]) ?? "") || unknown("; ask whoever made it before you use it")],
    ["Known results", simple(found(provenance, ["results", "result"]) ?? null) ? unknown("; “ostension eval run” measures them") : tree(found(provenance, ["results", "result"]))],
  ];
  return [
    el("h3", {}, "Where it comes from"), list(known),
    empty(provenance) ? null : el("details", { class: "part" }, el("summary", {}, "The whole record"), tree(provenance)),
  ];
}

/** The first value under one of these names, nearest to the root. */
function found(value, names) {
  for (let level = [value]; level.length; level = level.flatMap((one) => Object.values(one).filter((part) => part && typeof part === "object" && !Array.isArray(part)))) {
    for (const one of level) for (const name of names) if (!empty(one?.[name])) return one[name];
  }
  return undefined;
}

function list(entries) {
  return el("dl", { class: "card-list" }, entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, value)]));
}

/** A tree of settings; what is deep unfolds. */
function tree(value) {
  if (typeof value !== "object" || value === null) return el("p", { dir: "auto" }, String(value));
  return el("dl", { class: "card-list" }, Object.entries(value).filter(([, one]) => !empty(one)).flatMap(([name, one]) => [
    el("dt", { dir: "auto" }, name),
    el("dd", { dir: "auto" }, simple(one) ? written(one) : el("details", {}, el("summary", {}, Array.isArray(one) ? count(one.length, "entry", "entries") : "details", el("span", { class: "offscreen" }, ` of ${name}`)), tree(one))),
  ]));
}

function simple(value) {
  return value === null || typeof value !== "object" || (Array.isArray(value) && value.every((one) => typeof one !== "object") && JSON.stringify(value).length < 80);
}

function written(value) {
  return Array.isArray(value) ? value.join(", ") : String(value);
}

function empty(value) {
  return value === null || value === undefined || value === "" || (typeof value === "object" && !Object.keys(value).length);
}

function plain(value) {
  return value.toLocaleString("en");
}

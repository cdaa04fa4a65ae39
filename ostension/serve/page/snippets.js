// The lines that do in Python or with curl what the page just did. Keys are never shown.

import { copyText, el } from "./dom.js";
import { forShell } from "./words.js";

const SHOWN = 3; // pictures in the lines; more go the same way

export function classifySnippets({ names, labels, templates }) {
  const files = names.slice(0, SHOWN).map((name) => name || "picture.jpg");
  const python = [
    "from ostension.serve.client import Client",
    "",
    `client = Client(${text(address())})`,
    `found = client.classify([${files.map((name) => `open(${text(name)}, "rb").read()`).join(", ")}],`,
    `                        labels=${list(labels)}, templates=${typeof templates === "string" ? text(templates) : list(templates)})`,
    "for picture in found:",
    "    print(picture)",
  ];
  const body = JSON.stringify({ labels, templates });
  return shown(python, curl("v1/classify", body, files.map((name) => ["images", name])));
}

export function searchSnippets(sent, picture) {
  const { query, collection, k, where } = sent;
  const short = query.vector ? `[${query.vector.slice(0, 3).map((value) => value.toFixed(4)).join(", ")}, ...]` : null;
  const asked = short ? `vector=${short}` : Object.entries(query).map(([name, value]) => `${name}=${text(value)}`).join(", ");
  const python = [
    "from ostension.serve.client import Client",
    "",
    `client = Client(${text(address())})`,
    ...(short ? [`# the vector is made here of ${picture ? "the picture and " : ""}what else is in the query`] : []),
    `hits = client.search(${asked}, collection=${text(collection)}, k=${k}${where ? `, where=${text(where)}` : ""})`,
    "for hit in hits:",
    '    print(hit["id"], hit["score"], hit["fields"])',
  ];
  const body = short ? JSON.stringify({ collection, query: { vector: [] }, k, ...(where && { where }) }).replace("[]", short) : JSON.stringify({ collection, query, k, ...(where && { where }) });
  return shown(python, curl("v1/search", body, []));
}

function shown(python, curl) {
  return [["Python", python.join("\n")], ["curl", curl]].map(([name, lines]) => el("div", { class: "snippet" },
    el("div", { class: "head" }, el("h4", {}, name), el("button", { type: "button", class: "quiet", onclick: (event) => copyText(lines, event.target), "aria-label": `Copy the lines for ${name}` }, "Copy")),
    el("pre", { tabIndex: 0, role: "region", "aria-label": `Lines for ${name}` }, el("code", {}, lines))));
}

/** Files go in by jq, for a shell's arguments are too short for pictures. */
function curl(path, body, files) {
  const send = `curl ${forShell(address() + path)} -H 'Content-Type: application/json' -d @-`;
  if (!files.length) return `${send} <<'END'\n${body}\nEND`;
  const pictures = files.map(([, name]) => `  base64 -w0 ${forShell(name.startsWith("-") ? `./${name}` : name)}; echo`).join("\n");
  return `{\n${pictures}\n} | jq -R '{image: .}' | jq -s ${forShell(`${body.slice(0, -1)}, "images": .}`)} | ${send}`;
}

function address() {
  return new URL(".", location.href.split("#")[0]).href;
}

/** A Python string: JSON's escapes are Python's, but for a few signs past the first plane, which may stand as they are. */
function text(value) {
  return JSON.stringify(value);
}

function list(values) {
  return `[${values.map(text).join(", ")}]`;
}

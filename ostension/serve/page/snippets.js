// The lines that do in Python or with curl what the page just did. A key is never shown: both read it from OSTENSION_KEY.

import { copyText, el } from "./dom.js";
import { forShell } from "./words.js";

const SHOWN = 3; // pictures in the lines; more go the same way
const DIGITS = 5; // of a vector's numbers; the service makes it a unit vector again

/** Lines for `/v1/classify`: names of files, labels, templates (a set's name or a list), and whether a key is needed. */
export function classifySnippets({ names, labels, templates, keyed }) {
  const files = names.slice(0, SHOWN);
  const python = [
    ...client(),
    `files = ${written(files)}`,
    `found = client.classify(files, ${written(labels)},`,
    `                        templates=${written(templates)})`,
    "for file, answers in zip(files, found):",
    "    print(file, answers)",
  ];
  return shown(python, curl("v1/classify", { labels, templates }, keyed, files));
}

/** Lines for `/v1/search`: what was sent, and of what a vector was made where it is simple: {file, words, share}. */
export function searchSnippets({ query, collection, k, where }, made, keyed) {
  const rest = `collection=${written(collection)}, k=${k}${where ? `, where=${written(where)}` : ""})`;
  const vector = query.vector?.map((value) => Number(value.toFixed(DIGITS)));
  const python = client();
  if (vector && made) {
    python.push(`image = client.embed_images(${written(made.file)})[0]`);
    if (made.words) python.push(`words = client.embed_texts(${written(made.words)})[0]`);
    python.push(`hits = client.search(vector=${made.words ? `${1 - made.share} * words + ${made.share} * image` : "image"}, ${rest}`);
  } else {
    const asked = vector ? `vector=${written(vector)}` : Object.entries(query).map(([name, value]) => `${name}=${written(value)}`).join(", ");
    python.push(`hits = client.search(${asked}, ${rest}`);
  }
  python.push("for hit in hits:", '    print(hit["id"], hit["score"], hit["fields"])');
  return shown(python, curl("v1/search", { collection, query: vector ? { vector } : query, k, ...(where && { where }) }, keyed));
}

function client() {
  return ["from ostension.serve.client import Client", "", `client = Client(${written(address().replace(/\/$/, ""))})`];
}

function shown(python, curl) {
  return [["Python", python.join("\n")], ["curl", curl]].map(([name, lines]) => el("div", { class: "snippet" },
    el("div", { class: "head" }, el("h3", {}, name), el("button", { type: "button", class: "quiet", onclick: (event) => copyText(lines, event.target), "aria-label": `Copy ${name}` }, "Copy")),
    el("pre", { tabIndex: 0, role: "region", "aria-label": `Lines for ${name}` }, el("code", {}, lines))));
}

/** Pictures go in by jq on stdin, for a shell's arguments are too short for them. */
function curl(path, body, keyed, files = []) {
  const key = keyed ? ' -H "Authorization: Bearer $OSTENSION_KEY"' : "";
  const send = `curl ${forShell(address() + path)} -H 'Content-Type: application/json'${key} -d @-`;
  if (!files.length) return `${send} <<'END'\n${JSON.stringify(body)}\nEND`;
  const pictures = files.map((name) => `  base64 -w0 ${forShell(name.startsWith("-") ? `./${name}` : name)}; echo`).join("\n");
  return `{\n${pictures}\n} | jq -R '{image: .}' | jq -s ${forShell(`${JSON.stringify(body)} + {images: .}`)} | ${send}`;
}

function address() {
  return new URL(".", location.href.split("#")[0]).href;
}

/** A Python literal of a text, a number, or a list: JSON is one of those. */
function written(value) {
  return Array.isArray(value) ? `[${value.map(written).join(", ")}]` : JSON.stringify(value);
}

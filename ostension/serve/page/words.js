// Labels and templates as people type them, and as a link carries them.

/** Parts of a text: one a line or between commas; a comma inside double quotes belongs to the name. */
export function parseLabels(text) {
  const found = [];
  for (const line of text.split(/\r?\n/)) {
    for (const [, quoted, plain] of line.matchAll(/\s*(?:"((?:[^"]|"")*)"\s*(?=,|$)|([^,]*))(?:,|$)/g)) {
      const name = clean(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
      if (name) found.push(name);
    }
  }
  const names = [...new Set(found)];
  return { names, repeated: found.length - names.length };
}

/** The text of which `parseLabels` makes these names. */
export function writeLabels(names) {
  return names.map((name) => (/[,"]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name)).join("\n");
}

/** Templates, one a line; each has one {}. */
export function parseTemplates(text) {
  const lines = [...new Set(text.split(/\r?\n/).map(clean).filter(Boolean))];
  const wrong = lines.filter((line) => line.split("{}").length !== 2);
  return { templates: lines.filter((line) => !wrong.includes(line)), wrong };
}

export function fill(template, name) {
  return template.replace("{}", () => name);
}

function clean(text) {
  return text.trim().replace(/\s+/g, " ");
}

/** The fragment of a link: the tab, and for it what was typed. */
export function writeFragment(state) {
  const entries = Object.entries(state).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `#${new URLSearchParams(entries)}`;
}

export function readFragment(hash) {
  return Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
}

const share = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** A probability as people read it. */
export function percent(value) {
  if (value > 0 && value < 0.0005) return "<0.1 %";
  if (value < 1 && value >= 0.9995) return ">99.9 %";
  return `${share.format(100 * value)} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function bytes(size) {
  if (size < 1000) return count(size, "byte");
  const units = ["kB", "MB", "GB"];
  let value = size / 1000;
  let place = 0;
  for (; value >= 1000 && place < 2; place++) value /= 1000;
  return `${value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 })} ${units[place]}`;
}

/** A value for a shell, in single quotes. */
export function forShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Cells for a spreadsheet: quoted where needed, and never a formula. */
export function csv(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

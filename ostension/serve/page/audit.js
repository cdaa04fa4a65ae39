// The class-design audit of the typed labels.

import { announce, byId, el, fillWith } from "./dom.js";
import { count } from "./words.js";

const SEVERITIES = ["high", "medium", "low"];
const MOST = 100; // names in the table of neighbours, the closest ones

export class Audit {
  constructor({ service, labels, fail }) {
    Object.assign(this, { service, labels, fail });
    this.sets = {};
    byId("audit-run").addEventListener("click", () => this.run());
    this.refresh();
  }

  /** What would be checked now; a result for other labels is said to be old. */
  refresh() {
    const { names, templates } = this.labels;
    const enough = names.length >= 2 && templates.length > 0;
    byId("audit-run").disabled = !enough;
    byId("audit-what").textContent = enough
      ? `${count(names.length, "label")} in ${count(templates.length, "template")}`
      : "Type two labels or more on the first tab.";
    if (this.done) byId("audit-results").classList.toggle("old", this.done !== this.subject());
  }

  subject() {
    return JSON.stringify([this.labels.names, this.labels.templates]);
  }

  async run() {
    const subject = this.subject();
    const results = byId("audit-results");
    byId("audit-run").disabled = true;
    results.setAttribute("aria-busy", "true");
    fillWith(byId("audit-notices"), el("p", { class: "hint" }, "Checking…"));
    try {
      const found = await this.service.post("v1/audit", { labels: this.labels.names, templates: this.labels.templates });
      fillWith(byId("audit-notices"));
      this.done = subject;
      fillWith(results, this.report(found));
      announce(found.verdict, "audit", 0);
    } catch (error) {
      fillWith(byId("audit-notices"));
      this.fail(error, () => this.run(), "audit-notices");
    } finally {
      results.setAttribute("aria-busy", "false");
      this.refresh();
    }
  }

  report({ verdict, findings, skipped, neighbours }) {
    const groups = SEVERITIES.map((severity) => {
      const several = findings.filter((finding) => finding.severity === severity);
      if (!several.length) return null;
      const kinds = [...new Set(several.map((finding) => finding.kind))];
      return el("section", { class: `findings ${severity}` },
        el("h3", {}, this.sets.severities?.[severity] ?? severity, " ", el("span", { class: "soft" }, several.length.toLocaleString("en"))),
        kinds.map((kind) => this.kind(kind, several.filter((finding) => finding.kind === kind))));
    });
    return [
      el("p", { class: "verdict", role: "status" }, verdict),
      ...groups,
      nearest(neighbours ?? {}),
      skipped.length ? el("details", {}, el("summary", {}, "What was not checked, and why"), el("ul", {}, skipped.map((line) => el("li", { dir: "auto" }, line)))) : null,
    ];
  }

  kind(kind, findings) {
    const [title, meaning] = this.sets.kinds?.[kind] ?? [kind, ""];
    return [
      el("h4", {}, title), meaning && el("p", { class: "hint" }, meaning),
      el("ul", { class: "plain finding-list" }, findings.map((finding) => el("li", {},
        el("p", { dir: "auto" }, finding.evidence),
        el("p", { class: "do", dir: "auto" }, el("strong", {}, "Do: "), finding.suggestion),
        el("details", {}, el("summary", {}, "Rule"), el("p", { class: "hint" }, finding.rule))))),
    ];
  }
}

/** What each name is nearest to, the closest first: 0 is the same row, 1 the distance of words that have nothing in common. */
function nearest(neighbours) {
  const rows = Object.entries(neighbours).sort((a, b) => a[1][0][1] - b[1][0][1]);
  if (!rows.length) return null;
  return el("details", {},
    el("summary", {}, "What each name is nearest to"),
    el("p", { class: "hint" }, "0 is the same to the model; 1 is as far as words that have nothing to do with each other.",
      rows.length > MOST && ` The closest ${MOST} of ${rows.length.toLocaleString("en")} are listed.`),
    el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table of nearest names" }, el("table", { class: "words" },
      el("caption", { class: "offscreen" }, "Nearest names"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "name"), el("th", { scope: "col" }, "nearest"))),
      el("tbody", {}, rows.slice(0, MOST).map(([name, several]) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, name),
        el("td", {}, several.map(([other, distance], place) => [place > 0 && ", ", el("span", { dir: "auto" }, other), el("span", { class: "soft" }, ` ${distance.toFixed(2)}`)]))))))));
}

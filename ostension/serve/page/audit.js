// The class-design audit of the typed labels.

import { announce, byId, el, fillWith } from "./dom.js";
import { count } from "./words.js";

const SEVERITIES = ["high", "medium", "low"];

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

  report({ verdict, findings, skipped }) {
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

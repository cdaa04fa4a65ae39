// The service: one place that asks, waits where it is busy, asks for the key, and tells when nobody answers.

export class ServiceError extends Error {
  constructor(message, { status = 0, code = "", param = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, param });
  }

  /** Whether the same request may be answered later. */
  get passes() {
    return this.code === "lost" || [401, 403, 429].includes(this.status) || this.status >= 500;
  }
}

const TRIES = 6; // of a request that is refused because the service is busy; one that is not ready is waited for
const LONGEST_S = 30;
const LOST = 4; // times that a request gets no answer from a service that answers others

export class Service {
  /**
   * @param state is told `{kind: "ok"|"busy"|"gone"|"starting", seconds}` whenever that changes
   * @param askKey gives a promise of a key, or of null where the person gives none
   */
  constructor({ state, askKey }) {
    this.state = state;
    this.askKey = askKey;
    this.key = ""; // in memory only
    this.asking = null;
    this.back = null;
  }

  get(path, options = {}) {
    return this.send(path, "json", options);
  }

  post(path, body, options = {}) {
    return this.send(path, "json", { ...options, method: "POST", body: JSON.stringify(body) });
  }

  blob(path, options = {}) {
    return this.send(path, "blob", options);
  }

  /** The answer, read to its end as "json" or "blob": a service may also go away in the middle of one. */
  async send(path, kind, { method = "GET", body, signal } = {}) {
    let lost = 0;
    for (let tries = 1; ; tries++) {
      const key = this.key;
      const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
      let response, answer;
      try {
        response = await fetch(path, { method, body, headers, signal, cache: "no-store", credentials: "omit" });
        if (response.ok) answer = await response[kind]();
      } catch (error) {
        if (signal?.aborted) throw error;
        if (error instanceof SyntaxError) throw new ServiceError("The service's answer cannot be read; is something else in between?");
        if (++lost >= LOST) throw new ServiceError("The service answers, and closes the connection on this request.", { code: "lost" });
        await this.untilBack();
        tries = 0;
        continue;
      }
      if (response.ok) {
        this.state({ kind: "ok" });
        return answer;
      }
      const problem = await problemOf(response);
      if (response.status === 401 || response.status === 403) {
        if (key === this.key) await this.needKey(Boolean(key));
        tries -= 1;
      } else if (response.status === 503 || (response.status === 429 && tries < TRIES)) {
        const seconds = Math.min(LONGEST_S, Number(response.headers.get("Retry-After")) || 2 ** Math.min(3, tries - 1));
        this.state({ kind: response.status === 429 ? "busy" : "starting", seconds });
        await pause(1000 * seconds, signal);
      } else {
        this.state({ kind: "ok" }); // it answers
        throw problem;
      }
    }
  }

  /** Asks once for all that wait. */
  async needKey(wrong) {
    this.asking ??= Promise.resolve(this.askKey(wrong)).finally(() => { this.asking = null; });
    const given = await this.asking;
    if (!given) throw new ServiceError("The service needs a key, and none was given.", { status: 401, code: "key" });
    this.key = given;
  }

  /** Waits until somebody answers again; all requests share one watch. */
  async untilBack() {
    this.back ??= this.watch().finally(() => { this.back = null; });
    return this.back;
  }

  async watch() {
    for (let seconds = 1; ; seconds = Math.min(10, seconds + 1)) {
      this.state({ kind: "gone", seconds });
      await Promise.race([pause(1000 * seconds), new Promise((resolve) => { this.tryNow = resolve; })]);
      try {
        await fetch("health/live", { cache: "no-store", credentials: "omit" });
        this.state({ kind: "ok", returned: true });
        return;
      } catch {
        // Nobody there yet.
      }
    }
  }
}

async function problemOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not from the service itself: a proxy's page, say.
  }
  const said = typeof error.message === "string" ? error.message : `The service answered ${response.status} without a reason.`;
  return new ServiceError(said, { status: response.status, code: error.code ?? "", param: error.param ?? "" });
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

/** The path of a collection's item: ids are anything, also with slashes. */
export function previewPath(collection, id) {
  return `v1/collections/${encodeURIComponent(collection)}/items/${encodeURIComponent(id)}/preview`;
}

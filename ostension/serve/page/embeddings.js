// Embeddings of prompts and pictures: each is asked for once, in batches within the service's limits.

import { ServiceError } from "./service.js";
import { fromBase64 } from "./vectors.js";
import { bytes } from "./words.js";

const KEPT = 100_000; // prompts; at 512 numbers each these are 200 MB
const TEXTS = 256; // most texts of a request, so that bars move before a long list is done
const IMAGES = 8;
const AT_ONCE = 2;

export class Embeddings {
  /** `turn` asks for the model's card anew and gives it to `use`. */
  constructor(service, turn) {
    this.service = service;
    this.turn = turn;
    this.texts = new Map(); // prompt -> row, or a ServiceError where the service refuses it
    this.underWay = new Map(); // prompt -> promise
    this.running = 0;
    this.queue = [];
    this.limits = {};
    this.card = null;
    this.known = new Promise((resolve) => { this.tell = resolve; }); // pictures may come before the model is known
  }

  /** Another model: nothing that was kept is of use. Tells whether it is another. */
  use(card) {
    const other = this.card !== null && (card.id !== this.card.id || card.sha256 !== this.card.sha256);
    if (other) this.texts.clear();
    this.card = card;
    this.limits = card.limits;
    this.tell();
    return other;
  }

  text(prompt) {
    return this.texts.get(prompt);
  }

  /**
   * Comes back when each prompt has a row or a reason why not, or when nobody wants them any more: what still waits for its
   * turn then is not asked for. `progress` is called after each batch.
   */
  async ensure(prompts, progress = () => {}, wanted = () => true) {
    const most = Math.min(this.limits.max_batch_items ?? TEXTS, TEXTS);
    do {
      const missing = [...new Set(prompts)].filter((prompt) => !this.texts.has(prompt) && !this.underWay.has(prompt));
      for (let start = 0; start < missing.length; start += most) {
        const batch = missing.slice(start, start + most);
        const work = this.inTurn(() => wanted() && this.askTexts(batch)).finally(() => {
          for (const prompt of batch) this.underWay.delete(prompt);
          progress();
        });
        for (const prompt of batch) this.underWay.set(prompt, work);
      }
      await Promise.all(new Set(prompts.map((prompt) => this.underWay.get(prompt)).filter(Boolean)));
    } while (wanted() && !prompts.every((prompt) => this.texts.has(prompt))); // others may have given up what this one wants
    const wantedNow = new Set(prompts);
    for (const prompt of this.texts.keys()) {
      if (this.texts.size <= KEPT) break;
      if (!wantedNow.has(prompt)) this.texts.delete(prompt);
    }
  }

  async askTexts(batch) {
    const rows = await this.isolated(batch.map((text) => ({ text })));
    batch.forEach((prompt, index) => this.texts.set(prompt, rows[index]));
  }

  /** Rows of pictures: `done(file, row or ServiceError)` for each as it comes. */
  async images(files, done) {
    await this.known;
    const groups = [];
    let total = Infinity;
    for (const file of files) {
      const refused = this.refusal(file);
      if (refused) {
        done(file, refused);
        continue;
      }
      const size = Math.ceil(file.size / 3) * 4 + 64;
      const most = Math.min(this.limits.max_batch_items ?? IMAGES, IMAGES);
      if (total + size > 0.9 * (this.limits.max_body_bytes ?? 8e6) || groups.at(-1).length >= most) {
        groups.push([]);
        total = 0;
      }
      groups.at(-1).push(file);
      total += size;
    }
    await Promise.all(groups.map((group) => this.inTurn(async () => {
      const read = await Promise.all(group.map((file) => base64(file).catch(() => null)));
      const readable = group.filter((_, index) => read[index] !== null);
      group.forEach((file, index) => {
        if (read[index] === null) done(file, new ServiceError("The browser could not read this file."));
      });
      const rows = readable.length ? await this.isolated(read.filter((text) => text !== null).map((image) => ({ image }))) : [];
      readable.forEach((file, index) => done(file, rows[index]));
    }).catch((error) => group.forEach((file) => done(file, error)))));
  }

  /** What the page need not ask. */
  refusal(file) {
    const most = this.limits.max_image_bytes;
    if (file.size === 0) return new ServiceError("The file is empty.");
    if (most && file.size > most) {
      return new ServiceError(`The file has ${bytes(file.size)}; this service takes pictures of up to ${bytes(most)}.`);
    }
    return null;
  }

  /** Rows in order; where a request is refused because of an item, that item has the error and its neighbours have rows. */
  async isolated(items) {
    try {
      return await this.ask(items);
    } catch (error) {
      if (!(error instanceof ServiceError) || ![400, 413, 422].includes(error.status)) throw error;
      if (items.length === 1) return [error];
      const place = Number(/^input[[.](\d+)/.exec(error.param ?? "")?.[1] ?? NaN);
      const middle = Math.ceil(items.length / 2);
      const cuts = place < items.length ? [place, place + 1] : [middle];
      const parts = [0, ...cuts].map((from, index) => items.slice(from, cuts[index] ?? items.length)).filter((part) => part.length);
      const known = place < items.length && parts.length > 1;
      const rows = [];
      for (const part of parts) {
        rows.push(...(known && part.length === 1 && part[0] === items[place] ? [error] : await this.isolated(part)));
      }
      return rows;
    }
  }

  /** Rows of this page's model only: where the service has been started with another one meanwhile, the page turns to that. */
  async ask(items, again = true) {
    const answer = await this.service.post("v1/embeddings", { input: items, encoding_format: "base64" });
    if (answer.sha256 !== this.card.sha256) {
      if (!again) throw new ServiceError("The service's model changes all the time; rows of different models cannot be compared.");
      this.turning ??= this.turn().finally(() => { this.turning = null; });
      await this.turning;
      return this.ask(items, false);
    }
    const rows = new Array(items.length);
    for (const { index, embedding } of answer.data) rows[index] = fromBase64(embedding);
    return rows;
  }

  /** A few requests at a time: more would only wait in the service's queue, and be refused there when it is full. */
  async inTurn(work) {
    if (this.running >= AT_ONCE) await new Promise((resolve) => this.queue.push(resolve));
    this.running += 1;
    try {
      return await work();
    } finally {
      this.running -= 1;
      this.queue.shift()?.();
    }
  }
}

/** A file's bytes in base64. */
export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// Small pictures of hits: fetched when they come into view (with the key, which an address in <img> could not carry).

import { el } from "./dom.js";
import { previewPath } from "./service.js";

const KEPT = 300;

export class Previews {
  constructor(service) {
    this.service = service;
    this.urls = new Map();
    this.watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) {
          this.watcher.unobserve(target);
          this.load(target);
        }
      }
    }, { rootMargin: "300px" });
  }

  /** An image that fills itself; a plain tile where previews are off, or the picture cannot be had. */
  element(collection, hit, alt, allowed) {
    if (!allowed) return tile("");
    const image = el("img", { class: "preview", alt, decoding: "async" });
    image.wanted = previewPath(collection, hit.id);
    const known = this.urls.get(image.wanted);
    if (known) image.src = known;
    else this.watcher.observe(image);
    return image;
  }

  async load(image) {
    const path = image.wanted;
    try {
      const blob = await this.service.blob(path);
      if (!this.urls.has(path)) this.urls.set(path, URL.createObjectURL(blob));
      image.src = this.urls.get(path);
    } catch {
      image.replaceWith(tile("no preview"));
    }
  }

  /** Lets go of what has not been shown for long. */
  forget() {
    while (this.urls.size > KEPT) {
      const [path, url] = this.urls.entries().next().value;
      URL.revokeObjectURL(url);
      this.urls.delete(path);
    }
  }
}

function tile(text) {
  return el("span", { class: "preview none" }, text);
}

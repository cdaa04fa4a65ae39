// Small tools to make elements. Text goes in as text nodes only: nothing that a person or a store says becomes markup.

const ATTRIBUTES = /^(aria-|data-|role$|for$|list$|inputmode$|spellcheck$|autocapitalize$)/;

/** An element with properties, listeners (`onclick`) and children (elements or texts; null is left out). */
export function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  set(made, properties);
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function set(element, properties) {
  for (const [key, value] of Object.entries(properties)) {
    if (ATTRIBUTES.test(key)) {
      if (value === null || value === undefined) element.removeAttribute(key);
      else element.setAttribute(key, value);
    } else if (key === "class") element.className = value;
    else element[key] = value;
  }
}

export function byId(id) {
  return document.getElementById(id);
}

const waiting = new Map();

/** Says something to screen readers when things have come to rest; a later message of the same kind replaces it. */
export function announce(text, kind = "result", delay = 700) {
  clearTimeout(waiting.get(kind));
  waiting.set(kind, setTimeout(() => { byId("announcer").textContent = text; }, delay));
}

/** Runs `work` when `delay` ms have passed without another call. */
export function debounced(work, delay) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), delay);
  };
}

/** Copies a text and says so on the button; where the browser has no clipboard (plain http), by selecting it. */
export async function copyText(text, button, said = "Copied") {
  let done = false;
  if (navigator.clipboard && window.isSecureContext) {
    done = await navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  if (!done) {
    const area = el("textarea", { value: text, class: "offscreen", readOnly: true, "aria-hidden": "true", tabIndex: -1 });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  button.textContent = done ? said : "Could not copy";
  announce(button.textContent, "copy", 0);
  setTimeout(() => { button.textContent = before; }, 1600);
}

/** A notice: kind "bad", "note" or "good"; with a button where something can be done. */
export function notice(kind, title, text, action = null) {
  const button = action && el("button", { type: "button", onclick: action.run }, action.label);
  return el("div", { class: `notice ${kind}` }, el("p", {}, title && el("strong", {}, title), title && " ", text), button);
}

/** Replaces what is in `element`. */
export function fillWith(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
}

/** Files that were dropped or pasted, images as far as the browser can tell; also from a page (a copied picture). */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

// Pictures that come in: by the file dialogue, dropped anywhere, or pasted.

import { byId } from "./dom.js";

/** Gives the files that are dropped or pasted on the page to `take(files)`. */
export function watchForPictures(take) {
  let depth = 0;
  const over = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (on) => document.body.classList.toggle("dropping", on);
  addEventListener("dragenter", (event) => { if (over(event)) { depth += 1; mark(true); event.preventDefault(); } });
  addEventListener("dragleave", (event) => { if (over(event)) { depth -= 1; mark(depth > 0); } });
  addEventListener("dragover", (event) => { if (over(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    depth = 0;
    mark(false);
    if (!over(event)) return; // text that is moved into a field
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return; // a pasted text goes where the cursor is
    event.preventDefault();
    take(files);
  });
}

/** Gives what is chosen in a file field, and empties it so that the same file can be chosen again. */
export function onChosen(id, take) {
  byId(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) take(files);
  });
}

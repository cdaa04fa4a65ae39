// Arithmetic on embeddings. The same numbers as the service's own: unit rows in float32, everything after that in float64.

/** Little-endian float32 numbers from base64, the form in which embeddings are sent. */
export function fromBase64(text) {
  const letters = atob(text);
  const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

export function dot(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

/** `row` at unit length. A row of zeros has no direction and stays as it is. */
export function unit(row) {
  const length = Math.sqrt(dot(row, row));
  return length > 0 ? Float64Array.from(row, (value) => value / length) : Float64Array.from(row);
}

/** The sum of weights[i] * rows[i] at unit length. */
export function mixed(rows, weights) {
  const sum = new Float64Array(rows[0].length);
  rows.forEach((row, place) => row.forEach((value, index) => { sum[index] += weights[place] * value; }));
  return unit(sum);
}

/** A class's row: the mean over its prompts at unit length (CLIP averages embeddings, not probabilities). */
export function classRow(rows) {
  return mixed(rows, rows.map(() => 1));
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - top));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** Places of the largest values, largest first; equal ones in their order. */
export function order(values) {
  return values.map((_, place) => place).sort((a, b) => values[b] - values[a] || a - b);
}

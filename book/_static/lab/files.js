// The lab's folder, read and checked: every file against its size and sha256, before anything is computed from it.

import { build } from "./network.js";

export const FORMAT = 1;

/** What went wrong, in one sentence for the reader. */
export class LabError extends Error {}

/**
 * @typedef {{person: number, cell: number}} Crop
 * @typedef {{at: number, channels: number}} Place
 * @typedef {{attack: string, tied: boolean, through: string, eps: number, visible: Place, infrared: Place}} Perturbation
 * @typedef {{manifest: object, hash: string, network: import("./network.js").Network, rows: number, columns: number,
 *   queries: Record<string, Crop[]>, gallery: Record<string, Crop[]>, perturbations: Perturbation[],
 *   levels: ArrayBuffer, feature: (through: string, spectrum: string, place: number) => Float32Array,
 *   pixels: (cell: number) => Uint8Array, scores: object}} Lab
 */

/**
 * Returns the lab that a folder holds.
 * @param {(name: string) => Promise<ArrayBuffer>} read reads one file of the folder
 * @param {string} [stated] sha256 of the manifest that the page was built with
 * @returns {Promise<Lab>}
 */
export async function load(read, stated) {
  const text = (bytes) => new TextDecoder().decode(bytes);
  const json = (bytes, name) => {
    try {
      return JSON.parse(text(bytes));
    } catch {
      throw new LabError(`${name} cannot be read: it is damaged, or another file stands in its place.`);
    }
  };
  const told = new Uint8Array(await read("manifest.json")), manifest = json(told, "manifest.json");
  if (manifest?.format !== FORMAT)
    throw new LabError(`manifest.json has format ${manifest?.format}, and this page reads ${FORMAT}; reload the page.`);
  if (stated && sha256(told) !== stated)
    throw new LabError("manifest.json is not the one that this page was built with; reload the page, or build the book again.");
  const names = ["weights.bin", "perturbations.bin", "features.bin", "sprite.png", "scores.json"];
  const found = Object.fromEntries(await Promise.all(names.map(async (name) => {
    const bytes = new Uint8Array(await read(name)), stated = manifest.files?.[name];
    if (bytes.length !== stated?.bytes || sha256(bytes) !== stated.sha256)
      throw new LabError(`${name} is damaged: it is not the file that manifest.json names; reload, or export it again.`);
    return [name, bytes];
  })));
  const [rows, columns] = manifest.size, { dimension } = manifest.network;
  const [weights, levels, features] = await Promise.all(names.slice(0, 3).map((name) => inflate(found[name])));
  const sheet = await picture(found["sprite.png"]), size = rows * columns * 3;
  const pixels = (cell) => {
    const top = Math.floor(cell / manifest.columns) * rows, left = (cell % manifest.columns) * columns;
    const crop = new Uint8Array(size);
    for (let y = 0; y < rows; y++) {
      const from = ((top + y) * sheet.columns + left) * 3;
      crop.set(sheet.data.subarray(from, from + columns * 3), y * columns * 3);
    }
    return crop;
  };
  return {
    ...manifest, manifest, rows, columns, pixels, levels, scores: json(found["scores.json"], "scores.json"),
    hash: manifest.files["weights.bin"].sha256.slice(0, 12), network: build(manifest.network, weights),
    feature: (through, spectrum, place) =>
      new Float32Array(features, manifest.features[through][spectrum] + 4 * dimension * place, dimension),
  };
}

/** @param {Uint8Array} bytes of a zlib stream @returns {Promise<ArrayBuffer>} */
export function inflate(bytes) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

/**
 * Returns the pixels of a PNG of 8 bits and three channels, as they are in the file. A canvas would do, but a browser
 * that guards against fingerprinting changes what is read from one.
 * @param {Uint8Array} file
 */
export async function picture(file) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength), parts = [];
  const columns = view.getUint32(16), rows = view.getUint32(20);
  if (file[24] !== 8 || file[25] !== 2 || file[28] !== 0) throw new LabError("sprite.png is not a plain PNG of three channels.");
  for (let at = 8; at < file.length; ) {
    const length = view.getUint32(at), kind = String.fromCharCode(...file.subarray(at + 4, at + 8));
    if (kind === "IDAT") parts.push(file.subarray(at + 8, at + 8 + length));
    at += length + 12;
  }
  const packed = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (packed.set(part, at), at + part.length), 0);
  const raw = new Uint8Array(await inflate(packed)), wide = columns * 3, data = new Uint8Array(rows * wide);
  for (let y = 0; y < rows; y++) {
    const filter = raw[y * (wide + 1)], from = y * (wide + 1) + 1, to = y * wide;
    for (let x = 0; x < wide; x++) {
      const left = x > 2 ? data[to + x - 3] : 0, up = y ? data[to + x - wide] : 0;
      const corner = x > 2 && y ? data[to + x - wide - 3] : 0;
      data[to + x] = raw[from + x] + [0, left, up, (left + up) >> 1, filter === 4 ? paeth(left, up, corner) : 0][filter];
    }
  }
  return { data, rows, columns };
}

function paeth(left, up, corner) {
  const [a, b, c] = [up - corner, left - corner, left + up - 2 * corner].map(Math.abs);
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

const primes = Array.from({ length: 312 }, (_, n) => n).filter((n) => n > 1 && [...Array(n).keys()].slice(2).every((d) => n % d));
const fraction = (value) => Math.floor((value % 1) * 2 ** 32);

/** Returns 64 hex digits; crypto.subtle has none to give where a page is not served over https. @param {Uint8Array} bytes */
export function sha256(bytes) {
  const state = Uint32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const constants = Uint32Array.from(primes, (p) => fraction(Math.cbrt(p)));
  const padded = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64), view = new DataView(padded.buffer);
  padded.set(bytes);
  padded[bytes.length] = 128;
  view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
  view.setUint32(padded.length - 4, bytes.length * 8);
  const turn = (value, by) => (value >>> by) | (value << (32 - by)), w = new Uint32Array(64);
  for (let block = 0; block < padded.length; block += 64) {
    for (let i = 0; i < 64; i++) {
      if (i < 16) { w[i] = view.getUint32(block + 4 * i); continue; }
      const a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] += value));
  }
  return [...state].map((value) => value.toString(16).padStart(8, "0")).join("");
}

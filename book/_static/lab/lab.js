// What a state of the lab means: its perturbation within the budget, what stands before the network, the ranking.
// Pixels are rounded to float32 step by step, as PyTorch does, so that 8 bits come out the same.

import { run } from "./network.js";

export const ATTACKS = ["sign-noise", "uap", "cmps", "feature-level", "steps"];
export const SPECTRA = ["visible", "infrared"];
export const BEFORE = ["nothing", "mean", "chain"];
export const STEPS = [1, 10];
const LARGEST_SHIFT = 24, LARGEST_EPS = 16;

/**
 * @typedef {{query: number, spectrum: "visible" | "infrared", eps: number, attack: string, tied: boolean,
 *   bits: boolean, right: number, down: number, before: string, adaptive: boolean, steps: number, target: number}} State
 *   eps in 255ths; right, down: pixels by which a universal perturbation is shifted; target: a person, 0 for none
 * @type {State}
 */
export const START = {
  query: 0, spectrum: "visible", eps: 8, attack: "cmps", tied: false, bits: true, right: 0, down: 0, before: "nothing",
  adaptive: true, steps: 1, target: 0,
};

const f = Math.fround;

/** Returns a state as the end of a link. @param {State} state @param {string} hash of the weights @returns {string} */
export function encode(state, hash) {
  const said = Object.entries(state).filter(([name, value]) => value !== START[name]);
  return `#lab&${new URLSearchParams([...said.map(([name, value]) => [name, String(value)]), ["weights", hash]])}`;
}

/**
 * Returns the state that a link restores, and what of the link could not be taken.
 * @param {string} link from the # on @param {import("./files.js").Lab} lab
 * @returns {{state: State, wrong: string[], weights: string}}
 *   weights: the first digits of the sha256 that the link names, or of those that are here
 */
export function decode(link, lab) {
  const state = { ...START }, wrong = [], asked = new URLSearchParams(link.startsWith("#lab&") ? link.slice(5) : "");
  const whole = (low, high) => (text) => (/^-?\d+$/.test(text) && +text >= low && +text <= high ? +text : undefined);
  const one = (names) => (text) => (names.includes(text) ? text : undefined);
  const flag = (text) => ({ true: true, false: false })[text], people = lab.gallery.visible.length;
  const readers = {
    query: whole(0, lab.queries.visible.length - 1), spectrum: one(SPECTRA), eps: whole(0, LARGEST_EPS), attack: one(ATTACKS),
    tied: flag, bits: flag, right: whole(-LARGEST_SHIFT, LARGEST_SHIFT), down: whole(-LARGEST_SHIFT, LARGEST_SHIFT),
    before: one(BEFORE), adaptive: flag, steps: (text) => STEPS.find((steps) => String(steps) === text), target: whole(0, people),
  };
  for (const [name, text] of asked) {
    const value = Object.hasOwn(readers, name) ? readers[name](text) : undefined;
    if (value !== undefined) state[name] = value;
    else if (name !== "weights") wrong.push(`${name} ${text}`.slice(0, 40));
  }
  return { state, wrong, weights: asked.get("weights")?.slice(0, 12) ?? lab.hash };
}

/** Whether infrared pixels get three equal channels: asked for, or all that passes where their mean is taken. */
export const isTied = (state) => state.tied || (state.before === "mean" && state.adaptive);

/**
 * Returns the perturbation that a state uses, and by how much it is scaled: the one learned for the next stop from eps
 * up, through what stands before the network unless the state is naive.
 * @returns {{made: import("./files.js").Perturbation, scale: number}}
 */
export function chosen(lab, state) {
  const through = state.before === "chain" && state.adaptive && state.attack !== "sign-noise" ? "chain" : "nothing";
  const fits = (each) => each.attack === state.attack && each.tied === isTied(state) && each.through === through;
  const made = lab.perturbations.filter(fits).sort((a, b) => a.eps - b.eps).find((each) => each.eps >= state.eps);
  return { made, scale: state.eps / made.eps };
}

/** Returns a crop's clean pixels in [0, 1], [row][column][3]. @returns {Float32Array} */
export const pixelsOf = (lab, cell) => Float32Array.from(lab.pixels(cell), (level) => f(level / 255));

/** Returns the pixels moved into [clean - eps, clean + eps] and [0, 1]; eps a share of the range. */
function project(adversarial, clean, eps) {
  return adversarial.map((value, i) => {
    const change = Math.min(f(eps), Math.max(-f(eps), f(value - clean[i])));
    return Math.min(1, Math.max(0, f(clean[i] + change)));
  });
}

/** Returns the pixels as a file holds them: the nearest of 256 levels that keeps the budget. */
export function to8Bits(adversarial, clean, eps) {
  return adversarial.map((value, i) => {
    const low = Math.ceil(f(f(f(clean[i] - f(eps)) * 255) - f(1e-3))), level = f(value * 255);
    const high = Math.floor(f(f(f(clean[i] + f(eps)) * 255) + f(1e-3))), down = Math.floor(level), rest = level - down;
    const nearest = rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down; // halves to even, as PyTorch rounds
    return f(Math.min(255, Math.max(0, Math.min(high, Math.max(low, nearest)))) / 255);
  });
}

/** Returns what a universal perturbation adds to each pixel, scaled and shifted round the edges. */
export function addition(lab, state) {
  const { rows, columns } = lab, { made, scale } = chosen(lab, state), { at, channels } = made[state.spectrum];
  const levels = new Int8Array(lab.levels, at, rows * columns * channels), unit = f(made.eps / 255 / 127);
  const added = new Float32Array(rows * columns * 3), wrap = (value, size) => ((value % size) + size) % size;
  for (let y = 0, i = 0; y < rows; y++)
    for (let x = 0; x < columns; x++)
      for (let c = 0; c < 3; c++, i++) {
        const from = wrap(y - state.down, rows) * columns + wrap(x - state.right, columns);
        added[i] = f(f(levels[from * channels + (channels === 3 ? c : 0)] * unit) * f(scale));
      }
  return added;
}

/** Returns where each of `to` lines reads from `from` lines, bilinearly: the line, the next one, and its share. */
function lines(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const place = Math.max(0, ((i + 0.5) * from) / to - 0.5), first = Math.floor(place);
    return [first, Math.min(first + 1, from - 1), place - first];
  });
}

/** Resizes an image bilinearly; `back` takes a gradient from the resized image to the one before. */
function resize(image, from, to, back = false) {
  const [down, across] = [0, 1].map((side) => lines(from[side], to[side]));
  const out = new Float64Array((back ? from : to)[0] * (back ? from : to)[1] * 3);
  down.forEach(([y0, y1, v], i) => across.forEach(([x0, x1, u], j) => {
    for (const [y, x, share] of [[y0, x0, (1 - v) * (1 - u)], [y0, x1, (1 - v) * u], [y1, x0, v * (1 - u)], [y1, x1, v * u]])
      for (let c = 0; c < 3; c++) {
        const large = (y * from[1] + x) * 3 + c, small = (i * to[1] + j) * 3 + c;
        if (back) out[large] += share * image[small];
        else out[small] += share * image[large];
      }
  }));
  return Float32Array.from(out);
}

/** The mean of the three channels, in each of them; its own backward pass. */
const meanOfChannels = (image) => image.map((_, i) => (image[i - (i % 3)] + image[i - (i % 3) + 1] + image[i - (i % 3) + 2]) / 3);

/** Returns the feature of pixels behind what stands before the network, and the backward pass through both. */
export function pass(lab, image, state) {
  const full = [lab.rows, lab.columns], half = full.map((side) => side >> 1), stages = [full, half, full, half, full];
  let seen = image;
  if (state.before === "chain") for (let n = 1; n < 5; n++) seen = resize(seen, stages[n - 1], stages[n]);
  const mean = state.before === "mean" && state.spectrum === "infrared";
  if (mean) seen = meanOfChannels(seen);
  const { feature, back } = run(lab.network, seen, ...full, state.spectrum);
  return {
    feature,
    back: (score) => {
      let gradient = back(score);
      if (mean) return meanOfChannels(gradient);
      if (state.before === "chain") for (let n = 4; n > 0; n--) gradient = resize(gradient, stages[n - 1], stages[n], true);
      return gradient;
    },
  };
}

/** The gallery's spectrum, its crops, and their features behind what stands before the network. */
export function galleryOf(lab, state) {
  const spectrum = SPECTRA[1 - SPECTRA.indexOf(state.spectrum)], crops = lab.gallery[spectrum];
  const through = state.before === "chain" ? "chain" : "nothing";
  return { spectrum, crops, features: crops.map((_, place) => lab.feature(through, spectrum, place)) };
}

/** Returns the attacked pixels before rounding. @returns {Float32Array} */
function attacked(lab, state, clean) {
  const eps = state.eps / 255;
  if (state.attack !== "steps") {
    const added = addition(lab, state);
    return project(clean.map((value, i) => value + added[i]), clean, eps);
  }
  const known = state.adaptive ? state : { ...state, before: "nothing" }; // the naive one does not know what stands there
  const { crops, features } = galleryOf(lab, known), person = lab.queries[state.spectrum][state.query].person;
  // Up to the chosen person's crop, or away from the right ones: Metric-FGSM with the gallery for guides.
  const score = new Float32Array(lab.network.dimension), sign = state.target ? 1 : -1;
  crops.forEach((crop, place) => {
    if (crop.person === (state.target || person)) features[place].forEach((value, c) => (score[c] += sign * value));
  });
  const rate = state.steps === 1 ? eps : eps / 4;
  let image = clean;
  for (let step = 0; step < state.steps; step++) {
    const found = pass(lab, image, known).back(score);
    const gradient = isTied(state) && state.spectrum === "infrared" ? meanOfChannels(found) : found;
    image = project(image.map((value, i) => value + f(rate) * Math.sign(gradient[i])), clean, eps);
  }
  return image;
}

/** Returns places of the gallery, the most similar first; equal ones in their order. */
export function rank(feature, features) {
  const similarity = features.map((other) => other.reduce((sum, value, c) => sum + value * feature[c], 0));
  return { similarity, order: similarity.map((_, place) => place).sort((a, b) => similarity[b] - similarity[a] || a - b) };
}

/**
 * Returns what the lab shows of a state.
 * @returns {{image: Float32Array, clean: Float32Array, feature: Float32Array, order: number[], similarity: number[],
 *   firstRight: number, change: number, hit: boolean, hitUnrounded: boolean}} change: the largest of a pixel, in levels
 */
export function show(lab, state) {
  const { cell, person } = lab.queries[state.spectrum][state.query], clean = pixelsOf(lab, cell), eps = state.eps / 255;
  const exact = state.eps ? attacked(lab, state, clean) : clean;
  const image = state.bits ? to8Bits(exact, clean, eps) : exact, { crops, features } = galleryOf(lab, state);
  const found = (pixels) => {
    const { feature } = pass(lab, pixels, state);
    return { feature, ...rank(feature, features) };
  };
  const shown = found(image), { order } = shown;
  const change = 255 * image.reduce((most, value, i) => Math.max(most, Math.abs(value - clean[i])), 0);
  const first = (ranking) => crops[ranking[0]].person === state.target;
  return {
    ...shown, image, clean, change, firstRight: 1 + order.findIndex((place) => crops[place].person === person),
    hit: first(order), hitUnrounded: Boolean(state.target) && (state.bits ? first(found(exact).order) : first(order)),
  };
}

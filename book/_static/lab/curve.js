// The curve beside the one query: an attack over the whole test, as it was scored when the lab was exported.

import { isTied } from "./lab.js";

/** Returns a new element. @param {string} tag @param {object} [facts] attributes @param {...(Node|string)} inside */
export function make(tag, facts = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) if (value !== undefined) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

export const percent = (value) => `${value.toFixed(1)} %`;

/** The name of a state's direction in the scores. */
export const direction = ({ spectrum }) => (spectrum === "visible" ? "visible to infrared" : "infrared to visible");

const x = (eps) => 40 + 20 * eps, y = (rank1) => 150 - 1.3 * rank1;

/** Returns [eps, rank-1, change] of an attack in a state's setting, the clean network first. */
function points(scores, state, attack) {
  const chain = state.before === "chain", through = chain && state.adaptive && attack !== "sign-noise" ? "chain" : "nothing";
  const stands = state.before === "mean" && state.spectrum === "visible" ? "nothing" : state.before; // where it does nothing
  const key = [attack, isTied(state) ? "tied" : "free", through, stands, state.spectrum].join(" ");
  const clean = scores.rounded[chain ? "chain" : "nothing"][direction(state)].rank1;
  return [[0, clean], ...(scores.curves[key] ?? []).map(({ eps, rank1, change }) => [eps, rank1, change])];
}

/** Returns the drawing as SVG; noise is dashed with squares, an attack solid with discs, chance dotted. */
function drawing(lines, floor, state) {
  const mark = (name, [eps, rank1]) => (name === "sign-noise"
    ? `<rect class="noise" x="${x(eps) - 3}" y="${y(rank1) - 3}" width="6" height="6"/>`
    : `<circle class="attack" cx="${x(eps)}" cy="${y(rank1)}" r="4"/>`);
  const line = ([name, found]) => {
    const corners = found.map(([eps, rank1]) => `${x(eps)},${y(rank1)}`).join(" ");
    const kind = name === "sign-noise" ? "noise" : "attack";
    return `<polyline class="${kind}" points="${corners}"/>${found.map((point) => mark(name, point)).join("")}`;
  };
  const below = [0, 2, 4, 8, 16].map((eps) => `<text x="${x(eps)}" y="166" text-anchor="middle">${eps}</text>`);
  const beside = [0, 50, 100].map((rank1) =>
    `<text x="34" y="${y(rank1) + 4}" text-anchor="end">${rank1}</text><path class="grid" d="M40 ${y(rank1)}H360"/>`);
  const said = "Rank-1 over the whole test against eps; the table below has its numbers";
  return `<svg viewBox="0 0 380 186" role="img" aria-label="${said}">${below.join("")}${beside.join("")}`
    + `<path class="floor" d="M40 ${y(floor)}H360"/>${Object.entries(lines).map(line).join("")}`
    + `<path class="here" d="M${x(state.eps)} 20V150"/><text x="200" y="182" text-anchor="middle">eps, in 255ths</text></svg>`;
}

/** Returns the numbers as a table, changes with the intervals of the paired bootstrap over people. */
function table(lines, names) {
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
  const told = ([, rank1, change]) => percent(rank1)
    + (change ? ` (${signed(change.difference)}; ${signed(change.low)} to ${signed(change.high)})` : "");
  const row = (values, tag = "td") => make("tr", {}, ...values.map((value) => make(tag, {}, value)));
  const columns = Object.values(lines), head = ["eps", ...Object.keys(lines).map((name) => names[name])];
  const body = columns[0].map(([eps], place) => row([`${eps}/255`, ...columns.map((found) => told(found[place]))]));
  return make("table", {}, make("thead", {}, row(head, "th")), make("tbody", {}, ...body));
}

/**
 * Returns what stands below the ranking: a sentence, the drawing, and its numbers.
 * @param {object} scores scores.json @param {import("./lab.js").State} state
 * @param {Record<string, string>} names what attacks are called @returns {Node[]}
 */
export function curve(scores, state, names) {
  const attack = state.attack === "steps" ? "cmps" : state.attack, way = direction(state), [floor] = scores.chance[way];
  const lines = Object.fromEntries([...new Set(["sign-noise", attack])].map((name) => [name, points(scores, state, name)]));
  const [queries, gallery] = scores.tested[way], drawn = make("div");
  drawn.innerHTML = drawing(lines, floor, state);
  const looks = Object.keys(lines).map((name) => `${names[name]} (${name === "sign-noise" ? "dashed, squares" : "solid, discs"})`);
  const also = (state.attack === "steps" ? " Image-specific steps were not scored over the test; the curve is that of CMPS." : "")
    + (state.attack !== "steps" && (state.right || state.down) ? " It is of perturbations that are not shifted." : "");
  const said = `One query proves little. Over the whole test, ${queries} queries against ${gallery} crops, rank-1 in percent, `
    + `with attacked images rounded to 8 bits: ${looks.join(" and ")}; the dotted line is chance.${also}`;
  const summary = make("summary", {}, "The curve as a table, changes with their 95 % intervals");
  return [make("p", {}, said), drawn, make("details", {}, summary, table(lines, names))];
}

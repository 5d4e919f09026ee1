// What a ranking without information scores, computed exactly; the settings of the list stand in the table on the page.

/**
 * @typedef {[number, number]} Group people, and the gallery cameras that saw each of them
 * @typedef {{groups: Group[], shots: number, queries: number, rule: "none"|"room"|"own"}} Setting
 * @typedef {{rank1: number, mAP: number, mINP: number}} Scores fractions in [0, 1]
 */

/** Returns the mean scores of one query over every order of its gallery. @returns {Scores} */
export function expected(right, ranked) {
  let harmonic = 0, inp = 0, here = right / ranked; // how often the last right image stands at a rank, from the last down
  for (let rank = 1; rank <= ranked; rank++) harmonic += 1 / rank;
  for (let rank = ranked; rank >= right; here *= (rank - right) / (rank - 1), rank--) inp += here * right / rank;
  const others = ranked > 1 ? (right - 1) / (ranked - 1) : 0;
  return { rank1: right / ranked, mAP: (harmonic + others * (ranked - harmonic)) / ranked, mINP: inp };
}

/** Returns the least scores of one query: its right images are ranked last. @returns {Scores} */
export function least(right, ranked) {
  let ap = 0;
  for (let nth = 1; nth <= right; nth++) ap += nth / (ranked - right + nth) / right;
  return { rank1: Number(right === ranked), mAP: ap, mINP: right / ranked };
}

/**
 * Returns the kinds of query of a setting: which share of all, right images, ranked images. Each person asks alike often.
 * @param {Setting} setting rule "room": half of the queries drop one camera, which saw whoever three or more cameras saw;
 *   "own": a query drops its own person's images in its own camera
 */
export function kinds({ groups, shots, rule }) {
  const seen = groups.map(([people, cameras]) => ({ people, right: cameras * shots, room: cameras >= 3 ? shots : 0 }));
  const [images, inRoom] = ["right", "room"].map((what) => seen.reduce((sum, one) => sum + one.people * one[what], 0));
  const found = seen.flatMap(({ people, right, room }) => {
    if (rule === "own") return [[people, right - shots, images - shots]];
    if (rule === "room") return [[people / 2, right, images], [people / 2, right - room, images - inRoom]];
    return [[people, right, images]];
  }).filter(([people, right]) => people && right);
  const all = found.reduce((sum, [people]) => sum + people, 0);
  return found.map(([people, right, ranked]) => [people / all, right, ranked]);
}

/**
 * Returns means over queries: of rankings without information, and the least; `spread` to each side of rank-1 holds 95 %
 * of single rankings in which each query has an order of its own. Undefined where no query has a right image.
 * @param {Setting} setting @returns {{chance: Scores, least: Scores, spread: number, images: number}|undefined}
 */
export function floor(setting) {
  const all = kinds(setting), images = setting.shots * setting.groups.reduce((sum, [people, seen]) => sum + people * seen, 0);
  if (!all.length) return undefined;
  const mean = (of) => {
    const total = { rank1: 0, mAP: 0, mINP: 0 };
    for (const [share, right, ranked] of all) {
      const one = of(right, ranked);
      for (const score in total) total[score] += share * one[score];
    }
    return total;
  };
  const variance = all.reduce((sum, [share, right, ranked]) => sum + share * (right / ranked) * (1 - right / ranked), 0);
  return { chance: mean(expected), least: mean(least), spread: 1.96 * Math.sqrt(variance / setting.queries), images };
}

const percent = (share) => (100 * share).toFixed(2);
const LARGEST = { people: 10_000, cameras: 20, shots: 100, queries: 1_000_000 };
const RULES = { none: "nothing", room: "one whole camera, half of them", own: "their person in their own camera" };

/** Puts the calculator above its table. @param {HTMLElement} root */
function start(root) {
  const rows = [...root.querySelectorAll("tbody tr")], form = document.createElement("form");
  const named = rows.map((row, place) => `<option value="${place}">${row.cells[0].textContent}</option>`).join("");
  const number = (name, value, label, least = 1) =>
    `<label>${label}<input type="number" name="${name}" value="${value}" min="${least}" max="${LARGEST[name]}" required></label>`;
  form.innerHTML = `<label class="wide">Begin with<select name="preset">${named}<option value="">your own</option></select></label>`
    + [0, 1, 2].map((place) => `<div class="group">${number("people", 0, place ? "and people" : "People", 0)}`
      + `${number("cameras", 1, "Cameras each")}</div>`).join("")
    + number("shots", 1, "Images a camera") + number("queries", 1, "Queries in all")
    + `<label class="wide">What queries leave out<select name="rule">${Object.entries(RULES)
      .map(([name, said]) => `<option value="${name}">${said}</option>`).join("")}</select></label>`
    + '<div role="status"><table></table><p></p></div>';
  const { preset, shots, queries, rule } = form.elements, groups = [...form.querySelectorAll(".group")];
  const [table, status] = ["table", "p"].map((tag) => form.querySelector(tag));

  function show() {
    const pairs = groups.map((group) => [...group.querySelectorAll("input")].map((input) => Number(input.value)));
    const setting = { groups: pairs.filter(([people]) => people), shots: Number(shots.value), queries: Number(queries.value),
      rule: rule.value };
    const wrong = [...form.elements].find((input) => !input.checkValidity());
    const found = wrong ? undefined : floor(setting);
    const ends = found && [-1, 1].map((side) => percent(Math.max(0, found.chance.rank1 + side * found.spread)));
    status.textContent = wrong ? `${wrong.labels[0].firstChild.textContent}: a whole number from ${wrong.min} to ${wrong.max}.`
      : !found ? "No query has a right image left."
      : `${found.images.toLocaleString("en")} gallery images. Where each query has a random order of its own, about 95 `
        + `rankings in 100 have a rank-1 from ${ends[0]} to ${ends[1]}\u00a0%.`;
    table.hidden = !found;
    if (!found) return;
    const row = (name, score) =>
      `<tr><th scope="row">${name}</th><td>${percent(found.chance[score])}</td><td>${percent(found.least[score])}</td></tr>`;
    table.innerHTML = '<thead><tr><th scope="col">%</th><th scope="col">chance</th><th scope="col">least</th></tr></thead>'
      + `<tbody>${row("rank-1", "rank1")}${row("mAP", "mAP")}${row("mINP", "mINP")}</tbody>`;
  }

  /** Writes a setting of the table into the form. */
  function take() {
    const setting = JSON.parse(rows[preset.value].dataset.setting);
    groups.forEach((group, place) => {
      const [people, cameras] = group.querySelectorAll("input");
      [people.value, cameras.value] = setting.groups[place] ?? [0, 1];
      group.hidden = place >= setting.groups.length;
    });
    [shots.value, queries.value, rule.value] = [setting.shots, setting.queries, setting.rule];
  }

  form.oninput = ({ target }) => {
    if (target !== preset) preset.value = "";
    else if (preset.value) take();
    show();
  };
  form.onsubmit = (event) => event.preventDefault();
  take();
  show();
  root.prepend(form);
}

for (const root of globalThis.document?.querySelectorAll('[data-move="floor"]') ?? []) start(root);

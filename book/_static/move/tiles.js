// One ranked list to be put in another order: CMC, AP and INP follow. The list and its scores stand on the page already.

/**
 * Returns the scores of one query, as `vireid_lite.metrics` has them.
 * @param {boolean[]} right whether each image of the ranked list shows the person asked for, the nearest first
 * @returns {{ranks: number[], cmc: number[], ap: number, inp: number}} ranks of the right images, from 1; cmc[0] is rank-1
 */
export function scores(right) {
  const ranks = right.flatMap((is, place) => (is ? [place + 1] : []));
  const precisions = ranks.map((rank, place) => (place + 1) / rank);
  return {
    ranks,
    cmc: right.map((_, place) => Number(ranks[0] <= place + 1)),
    ap: precisions.reduce((sum, each) => sum + each, 0) / ranks.length,
    inp: ranks.length / ranks.at(-1),
  };
}

/** Returns a list in which what stood at one place stands at another. @template T @param {T[]} list @returns {T[]} */
export function moved(list, from, to) {
  const rest = list.toSpliced(from, 1);
  return rest.toSpliced(Math.min(Math.max(to, 0), rest.length), 0, list[from]);
}

/** Returns the curve of CMC over bars of precision, as SVG. @param {ReturnType<typeof scores>} found */
function drawing({ ranks, cmc }) {
  const x = (rank) => 12 + 34 * rank, y = (share) => 130 - 110 * share;
  const bars = ranks.map((rank, place) => {
    const high = y((place + 1) / rank);
    return `<rect x="${x(rank) - 11}" y="${high}" width="22" height="${130 - high}"/>`;
  });
  const steps = cmc.map((share, place) => `${place ? "L" : "M"}${x(place + 1) - 17} ${y(share)}h34`);
  const below = cmc.map((_, place) => `<text x="${x(place + 1)}" y="146" text-anchor="middle">${place + 1}</text>`);
  const beside = [0, 0.5, 1].map((share) => `<text x="24" y="${y(share) + 4}" text-anchor="end">${share}</text>`
    + `<path class="grid" d="M29 ${y(share)}H369"/>`);
  const said = `CMC is 1 from rank ${ranks[0]}. Bars of precision at ranks ${ranks.join(", ")}.`;
  return `<svg viewBox="0 0 380 166" role="img" aria-label="${said}">${beside.join("")}${bars.join("")}`
    + `<path class="line" d="${steps.join("")}"/>${below.join("")}<text x="199" y="163" text-anchor="middle">rank</text></svg>`
    + "<p>Line: CMC. Bars: precision at each right image; AP is their mean.</p>";
}

/** Makes the tiles of an element movable: by pointer, by arrow keys, and by two buttons. @param {HTMLElement} root */
function start(root) {
  const list = root.querySelector("ol"), rows = [...root.querySelectorAll("dd")], figure = document.createElement("div");
  const slots = [...list.children], first = slots.map((slot) => ({ html: slot.innerHTML, right: slot.className === "right" }));
  let tiles = first, chosen = 0, held = false;
  figure.className = "move-figure";
  root.append(figure);
  for (const slot of slots) slot.replaceChildren(Object.assign(document.createElement("button"), { type: "button" }));

  function show() {
    slots.forEach((slot, place) => {
      const { html, right } = tiles[place], tile = slot.firstChild;
      slot.className = right ? "right" : "wrong";
      tile.innerHTML = html;
      tile.setAttribute("aria-pressed", String(place === chosen));
    });
    const found = scores(tiles.map(({ right }) => right)), { ranks, cmc, ap, inp } = found;
    const terms = ranks.map((rank, place) => `${place + 1}/${rank}`).join(" + ");
    const said = [cmc[0], cmc[4], `(${terms}) / ${ranks.length} = ${ap.toFixed(3)}`,
      `${ranks.length}/${ranks.at(-1)} = ${inp.toFixed(3)}`];
    said.forEach((text, row) => { rows[row].textContent = text; });
    figure.innerHTML = drawing(found);
  }

  /** Moves the chosen tile to a place, and the focus with it. @param {number} to */
  function move(to, focus = true) {
    const there = Math.min(Math.max(to, 0), tiles.length - 1);
    tiles = moved(tiles, chosen, there);
    chosen = there;
    show();
    if (focus) slots[chosen].firstChild.focus();
  }

  const choose = (place) => { chosen = place; show(); };
  const at = (element) => slots.indexOf(element?.closest("li"));
  list.addEventListener("focusin", ({ target }) => held || at(target) === chosen || choose(at(target)));
  list.onkeydown = (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowUp: chosen - 1, ArrowRight: chosen + 1, ArrowDown: chosen + 1,
      Home: 0, End: tiles.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  };
  list.onpointerdown = (event) => {
    if (at(event.target) < 0) return;
    choose(at(event.target));
    list.setPointerCapture(event.pointerId); // the list, not the tile: a finger drags on where tiles change places
    held = true;
  };
  list.onpointermove = ({ clientX, clientY }) => {
    const under = held ? at(document.elementFromPoint(clientX, clientY)) : -1;
    if (under >= 0 && under !== chosen) move(under);
  };
  list.onpointerup = list.onpointercancel = () => { held = false; };
  const buttons = document.createElement("div");
  buttons.className = "move-buttons";
  const does = { "← Move it up": () => move(chosen - 1, false), "Move it down →": () => move(chosen + 1, false),
    "As it was": () => { tiles = first; choose(0); } };
  for (const [text, onclick] of Object.entries(does))
    buttons.append(Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick }));
  list.after(buttons);
  show();
}

for (const root of globalThis.document?.querySelectorAll('[data-move="tiles"]') ?? []) start(root);

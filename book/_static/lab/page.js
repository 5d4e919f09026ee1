// The lab's page: controls, what they show, and one sentence where something fails. All computing is in worker.js.

import { curve, direction, make, percent } from "./curve.js";
import { chosen, decode, encode, START } from "./lab.js";

const NAMES = {
  "sign-noise": "noise, l2 norm of CMPS", uap: "UAP", cmps: "CMPS",
  "feature-level": "feature-level attack", "steps 1": "one step, this image", "steps 10": "ten steps, this image",
};
const DIRECTIONS = { visible: "visible to infrared", infrared: "infrared to visible" };
const STANDS = { nothing: "nothing", mean: "mean of the infrared channels", chain: "chain of resizes" };
const KNOWS = { true: "yes (adaptive)", false: "no (naive)" };
const RULES = "Choose a person, and make that person rank first with the smallest eps. The query and the perturbation are up "
  + "to you. With a person chosen, one step and ten steps pull towards that person; else they push away from the right "
  + "one. Only an image rounded to 8 bits counts, since that is what a file holds.";
const SHOWN = 10, WAIT = 300;

/** Returns the options of a select, from values and what is said of each. */
const options = (names) => names.map(([value, said]) => make("option", { value }, said));

/** Draws pixels [row][column][3], levels from 0 to 255, on a new canvas that says what it shows. */
function picture(levels, { rows, columns }, said) {
  const canvas = make("canvas", { width: columns, height: rows, role: "img", "aria-label": said });
  const image = new ImageData(columns, rows);
  for (let i = 0, o = 0; i < levels.length; i++, o++) {
    image.data[o] = levels[i];
    if (i % 3 === 2) image.data[++o] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** One lab inside an element, whose data-folder says where its files are. */
class Page {
  constructor(root) {
    this.root = root;
    this.folder = new URL(root.dataset.folder, location.href).href;
    this.id = 0;
    this.state = { ...START };
    this.built = this.form();
    this.status = make("p", { class: "lab-status", role: "status", "aria-live": "polite" }, "Loading the network…");
    this.crops = make("div", { class: "lab-crops" });
    this.list = make("ol", { class: "lab-ranking", "aria-label": "The gallery, most similar first" });
    this.facts = make("dl", { class: "lab-facts" });
    this.curve = make("div", { class: "lab-curve" });
    this.note = make("p", { class: "lab-note" });
    root.replaceChildren(this.built, this.status, this.crops, this.list, this.facts, this.note, this.curve);
    addEventListener("hashchange", ({ oldURL }) => {
      const back = !location.hash && new URL(oldURL).hash.startsWith("#lab&"); // to the page as it was opened
      if (this.lab && (location.hash.startsWith("#lab&") || back)) this.restore();
    });
    this.start();
  }

  /** Starts a worker, which loads and checks the files. */
  start() {
    this.worker?.terminate();
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onerror = () => this.failed({ sentence: "The lab's worker could not be loaded." });
    this.worker.onmessage = ({ data }) => this[data.kind](data);
    this.worker.postMessage({ kind: "load", folder: this.folder, manifest: this.root.dataset.manifest });
  }

  /** Says what went wrong, and offers to try again. */
  failed({ sentence }) {
    const again = make("button", { type: "button" }, "Try again");
    again.onclick = () => {
      this.status.replaceChildren("Loading the network…");
      this.start();
    };
    this.built.firstChild.disabled = true;
    this.root.setAttribute("aria-busy", "false");
    this.status.replaceChildren(`${sentence} `, again);
  }

  form() {
    const select = (names) => make("select", {}, ...options(Object.entries(names)));
    const number = () => make("input", { type: "number", min: -24, max: 24, step: 1 });
    const box = () => make("input", { type: "checkbox" });
    this.controls = {
      spectrum: select(DIRECTIONS), query: select({ 0: "1" }), attack: select(NAMES),
      eps: make("input", { type: "range", min: 0, max: 16, step: 1 }), tied: box(), bits: box(),
      right: number(), down: number(), before: select(STANDS),
      adaptive: select(KNOWS), target: select({ 0: "nobody" }),
    };
    this.epsSaid = make("output", {});
    const label = (text, name, ...more) => make("label", {}, make("span", {}, text), this.controls[name], ...more);
    const [share, reset] = ["Link to this state", "Start again"].map((said) => make("button", { type: "button" }, said));
    share.onclick = () => this.share();
    reset.onclick = () => this.take({ ...START });
    this.challenge = make("details", { class: "lab-challenge" }, make("summary", {}, "Challenge"),
      make("p", {}, RULES),
      label("Who should rank first", "target"), (this.judged = make("p", { class: "lab-judged", "aria-live": "polite" })));
    const fields = make("fieldset", { disabled: "" }, make("legend", {}, "What is attacked, and how"),
      label("Direction", "spectrum"), label("Query", "query"), label("Perturbation", "attack"), label("eps", "eps", this.epsSaid),
      label("Tied: equal channels on infrared", "tied"), label("Attacked image rounded to 8 bits", "bits"),
      label("Shift right, pixels", "right"), label("Shift down, pixels", "down"),
      label("Before the network", "before"), label("Does the attack know that?", "adaptive"),
      make("div", { class: "lab-buttons" }, share, reset), this.challenge);
    const form = make("form", { class: "lab-controls" }, fields);
    form.onsubmit = (event) => event.preventDefault();
    form.oninput = () => {
      this.note.textContent = ""; // what it says is of a state that was left
      this.changed();
    };
    form.onchange = () => { // a field shows the number that is used
      for (const name of ["right", "down"]) this.controls[name].value = this.state[name];
    };
    return form;
  }

  /** Files are loaded and whole. */
  ready({ lab, crops }) {
    this.lab = lab;
    this.pixels = crops;
    const queries = lab.queries.visible.map(({ person }, place) => [place, `${place + 1}: person ${person}`]);
    const people = lab.gallery.visible.map(({ person }) => [person, `person ${person}`]);
    this.controls.query.replaceChildren(...options(queries));
    this.controls.target.replaceChildren(...options([[0, "nobody"], ...people]));
    this.built.firstChild.disabled = false;
    this.restore();
  }

  /** Shows the state that the address names, or else the one that the page opens with. */
  restore() {
    const named = location.hash.startsWith("#lab&"), { lab } = this;
    const { state, wrong, weights } = decode(named ? location.hash : (this.root.dataset.start ?? ""), lab);
    const others = `other weights (${weights}, here ${lab.hash})`;
    this.take(state);
    this.note.textContent = (weights === lab.hash ? "" : `This link was made with ${others}: what it shows may differ. `)
      + (wrong.length ? `This link asks for what is not here, which is left out: ${wrong.join(", ")}.` : "");
    if (named) this.root.scrollIntoView();
  }

  /** Sets the controls to a state, and shows it. */
  take(state) {
    const { steps, attack, ...rest } = state;
    for (const [name, value] of Object.entries(rest))
      if (typeof value === "boolean" && name !== "adaptive") this.controls[name].checked = value;
      else this.controls[name].value = value;
    this.controls.attack.value = attack === "steps" ? `steps ${steps === 1 ? 1 : 10}` : attack;
    this.challenge.open ||= state.target > 0;
    this.changed(0);
  }

  /** Reads the controls, and asks for their state when they have been still for a moment. */
  changed(wait = WAIT) {
    const read = this.controls, [attack, steps] = read.attack.value.split(" ");
    const within = ({ value }) => Math.max(-24, Math.min(24, Math.round(value) || 0));
    this.state = {
      query: +read.query.value, spectrum: read.spectrum.value, eps: +read.eps.value, attack, steps: +(steps ?? 1),
      tied: read.tied.checked, bits: read.bits.checked, right: within(read.right), down: within(read.down), before: read.before.value,
      adaptive: read.adaptive.value === "true", target: +read.target.value,
    };
    const { state } = this, own = attack === "steps", forced = state.before === "mean" && state.adaptive;
    read.right.disabled = read.down.disabled = own;
    read.tied.disabled = forced;
    read.adaptive.disabled = state.before === "nothing" || attack === "sign-noise";
    const { made } = own ? {} : chosen(this.lab, state);
    const learned = own ? `, ${state.target ? `towards person ${state.target}` : "away from the right person"}`
      : attack === "sign-noise" ? "" : made.eps === state.eps ? ", learned for this eps"
      : `, the pattern learned for ${made.eps}/255, scaled`;
    this.epsSaid.textContent = `${state.eps}/255${state.eps ? learned + (forced ? ", tied" : "") : ": no attack"}`;
    this.root.setAttribute("aria-busy", "true");
    clearTimeout(this.timer);
    this.id++;
    this.timer = setTimeout(() => this.worker.postMessage({ kind: "show", id: this.id, state: this.state }), wait);
  }

  /** What the worker computed of a state. */
  shown({ id, state, found, untouched, milliseconds }) {
    if (id !== this.id) return;
    const { lab } = this, { person } = lab.queries[state.spectrum][state.query], eps = state.eps || 1;
    const levels = (image) => image.map((value) => 255 * value);
    const change = found.image.map((value, i) => 127.5 + (127.5 * 255 * (value - found.clean[i])) / eps);
    const figure = (values, said) => make("div", {}, picture(values, lab, said), make("p", { "aria-hidden": "true" }, said));
    this.crops.replaceChildren(figure(levels(found.clean), `query, person ${person}`), figure(levels(found.image), "attacked"),
      figure(change, state.eps ? `the change: black to white is ±${state.eps} levels` : "no change"));
    const crops = lab.gallery[state.spectrum === "visible" ? "infrared" : "visible"];
    const entry = (place) => {
      const crop = crops[place], right = crop.person === person, wanted = crop.person === state.target;
      const said = `${right ? "✓ right" : "✗ wrong"}${wanted ? ", chosen" : ""}`;
      return make("li", { class: right ? "right" : "wrong" }, picture(this.pixels.get(crop.cell), lab, `person ${crop.person}`),
        make("span", {}, `person ${crop.person}`), make("span", {}, said), make("span", {}, found.similarity[place].toFixed(2)));
    };
    this.list.replaceChildren(...found.order.slice(0, SHOWN).map(entry));
    const before = state.eps ? `, and ${untouched.firstRight} without the attack` : "";
    this.status.textContent = `The right person ranks ${found.firstRight} of ${crops.length}${before}.`;
    this.said = { state, found, crops, untouched, milliseconds };
    this.describe({});
    this.judge(state, found, crops[untouched.first].person);
    this.curve.replaceChildren(...curve(this.lab.scores, state, NAMES));
    this.root.setAttribute("aria-busy", "false");
    this.root.dataset.shown = id;
  }

  /** How many of the queries are right so far. */
  counted({ id, ...count }) {
    if (id === this.id) this.describe(count);
  }

  describe({ right, tried, of }) {
    const { state, found, crops, untouched, milliseconds } = this.said, { lab } = this;
    const so = tried < of ? `; still counting, ${of} in all` : "", [chance] = lab.scores.chance[direction(state)];
    const facts = [
      ["Rank of the right person", `${found.firstRight} of ${crops.length}; without the attack ${untouched.firstRight}`],
      [`Right at rank 1, of the queries drawn by seed ${lab.seed}`,
        right ? `${right.clean} of ${tried} without the attack, ${right.attacked} of ${tried} with it${so}` : "being counted…"],
      ["Right at rank 1 by chance", `${percent(100 / crops.length)} in this gallery, ${percent(chance)} in the whole test`],
      ["Largest change of a pixel", `${found.change.toFixed(state.bits ? 0 : 2)} of 255 levels`],
      ["Time to compute this query", `${milliseconds.toFixed(0)} ms`],
    ];
    this.facts.replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  /**
   * Says whether the chosen person ranks first, and with what; only an image of 8 bits within the budget counts, and
   * nobody who is `already` first without the attack.
   */
  judge(state, found, already) {
    const { spectrum, query, target, eps, bits } = state, { person } = this.lab.queries[spectrum][query];
    const within = found.change <= eps + 0.01, key = `${spectrum} ${query} ${target}`, best = (this.best ??= {});
    const counts = target && target !== person && target !== already;
    if (counts && found.hit && bits && within) best[key] = Math.min(eps, best[key] ?? eps);
    const budget = within ? `within ${eps}/255 after clipping and rounding` : "outside the budget";
    const floats = `Before rounding, as floats: ${found.hitUnrounded ? "yes" : "no"}.`;
    const least = best[key] === undefined ? "" : ` The smallest eps that did it here: ${best[key]}/255.`;
    this.judged.textContent = !target ? "Nobody is chosen."
      : target === person ? "This is the query's own person; choose another."
      : target === already ? "This person ranks first without an attack; choose another."
      : !bits ? `${floats} Only an image rounded to 8 bits counts.`
      : `${found.hit ? "Yes, this person ranks first" : "No, not first"}: in 8 bits, ${budget}. ${floats}${least}`;
  }

  /** Puts the state into the address, and on the clipboard where that is allowed. */
  async share() {
    history.replaceState(null, "", encode(this.state, this.lab.hash));
    try {
      await navigator.clipboard.writeText(location.href);
      this.note.textContent = "The link is in the address bar, and copied.";
    } catch {
      this.note.textContent = "The link is in the address bar.";
    }
  }
}

for (const root of document.querySelectorAll(".attack-lab")) new Page(root);

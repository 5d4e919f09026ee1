// The lab's computations, off the page: it loads and checks the files, shows the newest state asked for, and then tries
// the same on every query, for as long as nothing newer is asked.

import { LabError, load } from "./files.js";
import { encode, show, START } from "./lab.js";

let lab, wanted = 0;
const known = new Map();

/** Reads one file of the lab's folder. */
const reader = (folder) => async (name) => {
  let answer, bytes;
  try {
    answer = await fetch(new URL(name, folder));
    bytes = answer.ok && (await answer.arrayBuffer());
  } catch {
    throw new LabError(`The connection was lost while ${name} was loaded.`);
  }
  if (answer.status === 404) throw new LabError(`${name} is not here; \`vireid-lite lab\` writes the lab's files.`);
  if (!answer.ok) throw new LabError(`${name} could not be loaded (the server says ${answer.status}).`);
  return bytes;
};

/** The rank of the right crop in a state, and the place of the crop that ranks first; each state is computed once. */
function outcome(state) {
  const key = encode(state, "");
  if (!known.has(key)) {
    const { firstRight, order } = show(lab, state);
    known.set(key, { firstRight, first: order[0] });
  }
  return known.get(key);
}

/** The outcome of a state's query without the attack. */
const untouched = ({ query, spectrum, before }) => outcome({ ...START, query, spectrum, before, eps: 0 });

async function answer({ kind, id, folder, manifest: stated, state }) {
  if (kind === "load") {
    lab = await load(reader(folder), stated);
    const { manifest, hash, scores, queries, gallery, rows, columns } = lab, { files: _, network, ...told } = manifest;
    const crops = [queries, gallery].flatMap((each) => Object.values(each).flat()).map(({ cell }) => [cell, lab.pixels(cell)]);
    return postMessage({ kind: "ready", lab: { ...told, hash, scores, queries, gallery, rows, columns }, crops: new Map(crops) });
  }
  wanted = id;
  await new Promise((resume) => setTimeout(resume)); // lets what was asked in the meantime come first
  if (id !== wanted) return;
  const started = performance.now(), found = show(lab, state);
  const milliseconds = performance.now() - started;
  postMessage({ kind: "shown", id, state, found, untouched: untouched(state), milliseconds });
  const right = { clean: 0, attacked: 0 }, all = lab.queries[state.spectrum].map((_, query) => ({ ...state, query }));
  for (const [place, each] of all.entries()) {
    right.clean += untouched(each).firstRight === 1;
    right.attacked += outcome(each).firstRight === 1;
    postMessage({ kind: "counted", id, right, tried: place + 1, of: all.length });
    await new Promise((resume) => setTimeout(resume));
    if (id !== wanted) return;
  }
}

onmessage = ({ data }) => answer(data).catch((error) => {
  const sentence = error instanceof LabError ? error.message : `The lab stopped: ${error.message}`;
  postMessage({ kind: "failed", sentence });
});
